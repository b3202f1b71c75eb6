"""Functions as hooks of a model: one for each verb; those of one name are one model."""

from typing import Any

from modelserve.models.model import ANSWERS, SETTINGS, Model, as_model, is_function

__all__ = ["with_function"]


def with_function(target: Any, name: str, verb: str, known: Any = None) -> Any:
    """Return the model to register when a target becomes the hook of one verb.

    It keeps the hooks and the settings of `known`, the model of that name, if that is made of
    functions as well; else it replaces it. Raises TypeError for an unknown verb, and for a verb
    other than predict if the target is not a function but defines its own hooks.
    """
    if verb not in ANSWERS:
        raise TypeError(f"There is no verb {verb!r}: there are {', '.join(ANSWERS)}")
    others = _hooks_of(known)
    if verb == "predict" and not (others and is_function(target)):
        return target
    if isinstance(target, type | Model):
        raise TypeError(f"verb={verb!r} is for a function: {target!r} defines {verb} itself")
    if not callable(target):
        raise TypeError(f"{target!r} cannot be the {verb} of model {name!r}: it is not callable")
    model = as_model(target, name) if is_function(target) else Model(name)
    kept = {key: value for key, value in others.items() if key != verb}
    own = {key: value for key, value in vars(model).items() if key != "predict"}
    vars(model).pop("predict", None)
    vars(model).update({**kept, **own, verb: target})
    return model


def _hooks_of(known: Any) -> dict[str, Any]:
    """Return the hooks and settings of a model made of functions; none of any other model."""
    if type(known) is not Model or not any(verb in vars(known) for verb in ANSWERS):
        return {}
    return {key: value for key, value in vars(known).items() if key in (*ANSWERS, *SETTINGS)}
