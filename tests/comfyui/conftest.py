"""The package of the ComfyUI node beside a stand-in for ComfyUI's `folder_paths`."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT

PACKAGE = ROOT / "comfyui"


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """ComfyUI's models/loras."""
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def comfyui_node(loras):
    """The node of a package imported as ComfyUI imports a folder of custom_nodes."""
    folder_paths = SimpleNamespace(
        get_filename_list=lambda kind: sorted(str(p.relative_to(loras)) for p in loras.rglob("*.*")),
        get_full_path_or_raise=lambda kind, name: str(loras / name),
    )
    spec = importlib.util.spec_from_file_location(
        "custom", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    package = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "modules", sys.modules | {"folder_paths": folder_paths, "custom": package})
        spec.loader.exec_module(package)
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return package.NODE_CLASS_MAPPINGS["MMAudioLoRA"]
