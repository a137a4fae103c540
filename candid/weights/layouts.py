"""Key maps: what other libraries call the parameters of our networks, family by family.

A key map turns a name of ours, such as `stages.0.1.norm2.bias`, into theirs, `layer1.1.bn2.bias`. The tests of
equality run on these maps, so a wrong one makes a wrong network.
"""

import re
from collections.abc import Callable
from functools import partial

KeyMap = Callable[[str], str]


def key_map(*rules: tuple[str, str]) -> KeyMap:
    r"""The map that applies `rules` in order: a regular expression and what replaces it.

    In the replacement `\1` is a group as it was found, and `<1+4>` is the number in group 1 plus 4.
    """

    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, partial(_fill, replacement), name)
        return name

    return rename


def _fill(replacement: str, match: re.Match[str]) -> str:
    shifted = re.sub(r"<(\d)([+-]\d+)>", lambda part: str(int(match[int(part[1])]) + int(part[2])), replacement)
    return match.expand(shifted)


TORCHVISION = {
    "resnet": key_map(
        (r"^stem\.0", "conv1"),
        (r"^stem\.1", "bn1"),
        (r"^stages\.(\d)", "layer<1+1>"),
        (r"norm", "bn"),
        (r"shortcut", "downsample"),
        (r"^head", "fc"),
    ),
    "densenet": key_map(
        (r"^stem\.0", "features.conv0"),
        (r"^stem\.1", "features.norm0"),
        (r"^transitions\.(\d)", "features.transition<1+1>"),
        (r"^blocks\.(\d)\.layers\.(\d+)", "features.denseblock<1+1>.denselayer<2+1>"),
        (r"^norm\.", "features.norm5."),
        (r"^head", "classifier"),
    ),
}
