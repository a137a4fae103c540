"""Grad-CAM: which places of a picture speak for a class (Selvaraju et al. 2017, arXiv:1610.02391).

Shapes: N pictures, C channels of H W px; K maps of h w px.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from candid.errors import InputError

COLORS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""RGB from cold to hot, evenly spaced: matplotlib's inferno, whose lightness alone tells the order."""
MOST_COVER = 0.8
"""How much the hottest colour hides of the picture; the coldest hides nothing."""
POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def explain(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """How much each place speaks for a class, [N, H, W] in [0, 1]; the strongest place of a picture has 1.

    The maps are the last ones of more than one pixel that no pooling made and that all of the network's knowledge of
    the picture goes through; each is weighted by its mean gradient (equations 1 and 2). Where no place speaks for the
    class, all are 0. `inputs` [N, C, H, W] as the network sees them; `classes` int64 [N]. The network is applied in
    evaluation mode, and left in the mode that it had.

    Raises:
        InputError: if the network has no such maps.
    """
    with torch.inference_mode(False), torch.enable_grad():
        inputs = inputs.clone().requires_grad_()
        logits, made = _apply(model, inputs)
        maps = next((maps for maps in reversed(made) if _is_passed_by_all(maps, logits, inputs)), None)
        if maps is None:
            raise InputError(
                "The network has no maps of features with more than one pixel; expected some, because Grad-CAM weights "
                "them. Use a convolutional network, or larger pictures."
            )
        (gradients,) = torch.autograd.grad(logits.gather(1, classes.clone()[:, None]).sum(), maps)  # [N, K, h, w]
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # [N, K, 1, 1]
    heat = (weights * maps.detach()).sum(dim=1, keepdim=True).relu()  # [N, 1, h, w]
    heat = interpolate(heat, inputs.shape[2:], mode="bilinear").squeeze(1)  # [N, H, W]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)


def overlay(pixels: Tensor, heat: Tensor) -> Tensor:
    """A picture uint8 [3, H, W], grey, under the colours of a heat [H, W] in [0, 1]; uint8 [3, H, W]."""
    colors = torch.tensor(COLORS, dtype=torch.float32)
    place = heat.float() * (len(COLORS) - 1)
    below = place.long().clamp(max=len(COLORS) - 2)
    shade = torch.lerp(colors[below], colors[below + 1], (place - below)[:, :, None]).permute(2, 0, 1)  # [3, H, W]
    grey = pixels.float().mean(dim=0, keepdim=True)  # [1, H, W]
    return torch.lerp(grey.expand(3, -1, -1), shade, MOST_COVER * heat.float()).round().to(torch.uint8)


def _apply(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [N, classes], and all maps of more than one pixel in the order they were made, but for pooled ones."""
    made: list[Tensor] = []
    pooled: list[Tensor] = []

    def note(module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
            is_pooled = isinstance(module, POOLINGS) or any(output is known for known in pooled)
            (pooled if is_pooled else made).append(output)

    was_training = model.training
    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        return model.eval()(inputs), made
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def _is_passed_by_all(maps: Tensor, logits: Tensor, inputs: Tensor) -> bool:
    """Whether the logits know nothing of the inputs but by these maps, which one of several branches does not give."""
    seen, waiting = {maps.grad_fn}, [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is inputs:
            return False
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return True
