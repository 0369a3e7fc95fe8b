"""vitreous: Vision Transformers that anyone can train from scratch on small image data.

    import vitreous
    run = vitreous.train("cifar10", minutes=5)
    run.summary["test_acc"], run.predict(images)

`import vitreous` is fast, since each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "train": "vitreous.api",
    "resume": "vitreous.api",
    "repeat": "vitreous.api",
    "evaluate": "vitreous.evaluation",
    "load": "vitreous.run",
    "Run": "vitreous.run",
    "Recipe": "vitreous.recipe",
    "Classifier": "vitreous.training.classifier",
    "ImageData": "vitreous.data.module",
    "ImageStore": "vitreous.data.store",
    "VisionTransformer": "vitreous.model.vit",
    "create_model": "vitreous.model.vit",
    "open_data": "vitreous.data.sources",
    "VitreousError": "vitreous.errors",
}
__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vitreous")
    if name not in _HOMES:
        raise AttributeError(f"module 'vitreous' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
