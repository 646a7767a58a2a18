"""Blind spots: sentences on what a capture could not see."""

from torch import nn

from reludiag.capture.capture import Capture


def no_rectifier(model: nn.Module) -> str:
    """The error message for a model without rectifiers."""
    return (
        f"{type(model).__name__} has no rectifier (ReLU, ReLU6, clamp(min=0), Hardtanh(0, x), "
        "Threshold(0, 0), Hardswish, ...), as a module or as a function, so no unit in it can die."
    )


def blind_spots(capture: Capture) -> list[str]:
    """Sentences on what the capture could not see of the model."""
    spots, missed = [], capture.missed
    if missed.unobserved:
        owners = list(dict.fromkeys(owner or "the model itself" for owner, _ in missed.unobserved))
        calls = missed.unobserved.total()
        names = ", ".join(owners[:3]) + (f" and {len(owners) - 3} more" * (len(owners) > 3))
        operators = ", ".join(sorted({operator for _, operator in missed.unobserved}))
        spots.append(
            f"NOT OBSERVED: {calls} rectifier call{'s' * (calls != 1)} ({operators}) in {names}. "
            "They run where reludiag cannot read them, so their units get no verdict."
        )
    if missed.unreadable:
        kinds = ", ".join(sorted(set(missed.unreadable.values())))
        places = [
            f"{operator} in {owner or 'the model itself'}" for owner, operator in missed.unreadable
        ]
        names = ", ".join(places[:3]) + (f" and {len(places) - 3} more" * (len(places) > 3))
        spots.append(
            f"NOT OBSERVED: {names}, in each call whose output is not an ordinary tensor "
            f"({kinds}). Its values cannot be read, so they are in no count and no verdict."
        )
    if missed.transformed:
        spots.append(
            f"Left out: {missed.transformed:,} rectifier calls inside torch.func transforms "
            "(vmap, grad, jvp), which cannot be read from outside."
        )
    if missed.unrepeatable:
        spots.append(
            f"Left out: {missed.unrepeatable:,} rectifier calls on a path that was first taken "
            "by a batch that the model changed in place, so that the batch could not be run again."
        )
    if missed.traced and capture.functional:
        spots.append(
            "NOT OBSERVED: rectifiers called as functions, because the model was compiled during "
            "monitoring. Compile it first."
        )
    if missed.elsewhere and capture.functional:
        spots.append(
            "Part of a forward pass ran in another thread. Rectifier functions called there were "
            "not seen; modules were."
        )
    return spots
