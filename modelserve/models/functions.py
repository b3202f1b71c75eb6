"""Functions as hooks of a model: one for each verb, all of one name together."""

from typing import Any

from modelserve.models.model import ANSWERS, SETTINGS, Model, as_model, is_function

__all__ = ["with_function"]


def with_function(target: Any, name: str, verb: str, known: Any = None) -> Any:
    """Return what is to be registered where a function becomes the hook of one verb.

    It has the hooks and the settings of `known`, what the name leads to, if that is made of
    functions as well; otherwise what has been known is replaced. Raises TypeError for a verb that
    does not exist, and for another one than predict where the target has its hooks itself.
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
    """Return the hooks and settings of a model made of functions; of others, nothing."""
    if type(known) is not Model or not any(verb in vars(known) for verb in ANSWERS):
        return {}
    return {key: value for key, value in vars(known).items() if key in (*ANSWERS, *SETTINGS)}
