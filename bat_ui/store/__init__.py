"""Backbone stores: captioned pictures that the backbone was trained on, searchable in CLIP space."""
