"""Teachers: models that score images against the class names, once, before training."""

from collections.abc import Mapping
from dataclasses import fields

from models.clip import DEFAULT, DEFAULT_WEIGHTS
from models.teachers.base import Teacher
from models.teachers.clip import VIEWS, ClipTeacher
from models.teachers.file import FileTeacher, load_similarities

TEACHERS = {  # KIND of --teacher KIND:NAME
    "clip": ClipTeacher,
    "similarity": FileTeacher,
}
SETTINGS = {field.name for kind in TEACHERS.values() for field in fields(kind)}

__all__ = [
    "DEFAULT", "DEFAULT_WEIGHTS", "SETTINGS", "TEACHERS", "VIEWS", "ClipTeacher", "FileTeacher", "Teacher", "find",
    "load_similarities",
]  # fmt: skip


def find(settings: Mapping[str, object]) -> Teacher:
    """The teacher of --similarity FILE or of --teacher KIND:NAME; without a KIND, CLIP."""
    kind = "similarity" if settings["similarity"] else settings["teacher"].partition(":")[0]
    return TEACHERS.get(kind, ClipTeacher).from_settings(settings)
