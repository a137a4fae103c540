"""Where to start with a folder of pictures, by their sizes and colours and by rules of thumb."""

from collections.abc import Mapping
from shlex import join

from candid.data.decoding import is_grey_kind
from candid.data.diagnosis import Counts, Sizes, Suggestion

SMALLEST_PX, LARGEST_PX, STEP_PX = 28, 224, 32
"""Below the first, the networks see too little; above the last, they take long and gain little."""
LEAST_OF_PHOTOGRAPHS_PX = 128
"""From this side on, a network that was made for photographs."""
MANY_ELONGATED = 0.1
"""Share of pictures of which a square from the middle would leave too little."""


def suggest(folder: str, sizes: Sizes, kinds: Mapping[str, int], counts: Counts) -> Suggestion:
    """A size of pictures, what to hold out, and a command."""
    side = suggest_image_size(sizes.shorter_side.median)
    fit = "pad" if sizes.share_elongated >= MANY_ELONGATED else "crop"
    are_grey = all(map(is_grey_kind, kinds))
    recipe = (
        "default" if are_grey and side <= STEP_PX else "photos"
    )  # the first mirrors nothing: letters have no mirror
    words = ["candid", "train", recipe, "--data", folder, "--set", f"data.image_size={side}"]
    words += ["--set", f"data.fit={fit}"] if fit != "crop" else []
    words += ["--model", "resnet18"] if side >= LEAST_OF_PHOTOGRAPHS_PX else []
    return Suggestion(side, fit, _describe_splits(counts), join(words))


def suggest_image_size(side_px: int) -> int:
    """A side in px for pictures whose shorter side this usually is; a multiple of 32 above 32."""
    if side_px <= STEP_PX:
        return max(side_px, SMALLEST_PX)
    return min(side_px // STEP_PX * STEP_PX, LARGEST_PX)


def _describe_splits(counts: Counts) -> str:
    numbers = {split: sum(classes.values()) for split, classes in counts.items()}
    if "train" not in numbers:
        return "A tenth of each class will be held out to choose by, and a tenth to test with."
    parts = [f"{numbers['train']:,} pictures to learn from"]
    parts += [f"{numbers['validation']:,} to choose by"] if "validation" in numbers else []
    parts += [f"{numbers['test']:,} to test with"] if "test" in numbers else []
    held_out = "" if "validation" in numbers else "; a tenth of the first will be held out to choose by"
    return f"{', '.join(parts)}{held_out}."
