"""Teachers: who scores the training images against the class names, once, before training."""

from models.teachers.clip import DEFAULT, DEFAULT_WEIGHTS, ClipTeacher, similarities
from models.teachers.file import load_similarity

__all__ = ["DEFAULT", "DEFAULT_WEIGHTS", "ClipTeacher", "load_similarity", "similarities"]
