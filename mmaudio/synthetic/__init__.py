"""A small generated world in which what is seen causes what is heard: scenes, pictures, sounds and captions."""
