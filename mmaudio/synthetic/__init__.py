"""A synthetic world of short videos in which every visible event has its sound: scenes, frames, audio and captions.

A kind of object is a colour and a shape with a timbre. An actor is one object with its motion, a scene a few actors
before a background, a domain the kinds and backgrounds that its scenes are drawn from. Objects strike walls, switch
on and off, or spin; strikes and switches are events.
"""
