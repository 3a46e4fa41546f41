"""Knowledge distillation: the trained float network teaches the one that is made smaller.

    with distillation(student, teacher, config, structure.stages) as adjust_loss:
        fit(student, dataset, train_config, seed, Hooks(adjust_loss=adjust_loss))

What is minimised, with T the temperature and the mean over the images of a batch:

    (1 - weight) * the task's loss
    + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T))
    + features * attention transfer at the ends of the stages

Soft targets: Hinton et al. 2015, https://arxiv.org/abs/1503.02531. Attention transfer: Zagoruyko
and Komodakis 2017, https://arxiv.org/abs/1612.03928; it compares where in the image both networks
respond, so their channel counts may differ, as they do after pruning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline.networks.rewrites import Normalization, normalize_conv
from pipeline.recipe.training import DistillConfig

AdjustLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From (images, logits, the task's loss) to the loss to minimise."""


def soft_target_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over the batch.

    The factor T^2 keeps the gradient's size where the temperature changes, since the gradient of
    soft targets shrinks with 1 / T^2 (Hinton et al. 2015, section 2).

    Args:
        logits: of the student, (batch, classes).
        teacher_logits: the same shape.
        temperature: T, above 0.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    # Both as logarithms: a probability that underflows to 0 would lose its term.
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def attention_map(features: Tensor) -> Tensor:
    """Where a network responds: (batch, channels, height, width) to (batch, height * width).

    The mean over the channels of the squared activations, of length 1 for every image; all zeros
    where every activation of an image is zero.
    """
    return F.normalize(features.square().mean(dim=1).flatten(1), dim=1)


def attention_transfer(features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the attention maps, summed over the stages.

    It is small, since the squares of a map sum to 1 over all its places; the paper (section 4.1)
    takes a weight of the order of 1000. A map of a single place is always 1 and teaches nothing.

    Args:
        features: of the student, one (batch, channels, height, width) per stage.
        teacher_features: the same shapes, except for the channels.
    """
    pairs = zip(features, teacher_features, strict=True)
    differences = [F.mse_loss(attention_map(one), attention_map(two)) for one, two in pairs]
    return torch.stack(differences).sum()


@contextmanager
def distillation(
    student: nn.Module,
    teacher: nn.Module,
    config: DistillConfig,
    stages: Sequence[str],
    normalization: Normalization | None = None,
    shares: Callable[[Tensor], Tensor] = lambda answers: answers,
) -> Iterator[AdjustLoss]:
    """While inside, give the loss that teaches `student`, for `pipeline.train.Hooks`.

    The teacher is copied, and the copy is in evaluation mode and follows the images to their
    device. Of the student only the outputs at the ends of its stages are watched, and those only
    where `config.features` is above 0; nothing of that is left afterwards.

    Args:
        student: a network in any form, pruned or not, or a graph from `quantization.qat.prepare`;
            it has the teacher's stages, by the same module paths.
        teacher: takes normalised images; not changed.
        config: temperature and weights.
        stages: module paths, such as `layer2`, whose outputs are compared with features.
        normalization: that of the teacher's images, where the student takes pixel values 0..255.
        shares: from answers to logits whose softmax they stand for, as of the task.

    Raises:
        ValueError: with features, the student lacks a stage, or none is given. The loss raises it
            where the two have different numbers of classes, or a stage other places.
    """
    if config.weight == 0 and config.features == 0:
        yield lambda images, logits, loss: loss
        return
    copied = copy.deepcopy(teacher)
    normalize = normalize_conv(normalization) if normalization else nn.Identity()
    frozen = nn.Sequential(normalize, copied).eval().requires_grad_(False)
    watched = config.features > 0
    if watched and not stages:
        raise ValueError("distillation: the teacher has no stages to compare; set features to 0")
    ends = [_stage_end(student, stage) for stage in stages] if watched else []
    teacher_ends = [copied.get_submodule(stage) for stage in stages] if watched else []

    with _outputs(ends) as outputs, _outputs(teacher_ends) as teacher_outputs:

        def adjust(images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
            if next(copied.parameters()).device != images.device:
                frozen.to(images.device)
            # Not inference_mode: autograd cannot save its tensors where a loss uses them directly.
            with torch.no_grad():
                teacher_logits = frozen(images).to(logits.dtype)
            _refuse_other_classes(logits, teacher_logits)
            total = (1 - config.weight) * loss
            if config.weight > 0:
                soft = soft_target_loss(shares(logits), shares(teacher_logits), config.temperature)
                total = total + config.weight * soft
            if watched:
                pairs = outputs(), teacher_outputs()
                _refuse_other_places(stages, *pairs)
                total = total + config.features * attention_transfer(*pairs)
            return total

        yield adjust


def _refuse_other_classes(logits: Tensor, teacher_logits: Tensor) -> None:
    found, wanted = logits.shape[1], teacher_logits.shape[1]
    if found != wanted:
        raise ValueError(
            f"distillation: the student has {found} classes, the teacher {wanted}; "
            "both must be trained on the same ones"
        )


def _refuse_other_places(
    stages: Sequence[str], features: Sequence[Tensor], teacher_features: Sequence[Tensor]
) -> None:
    for stage, one, two in zip(stages, features, teacher_features, strict=True):
        if one.shape[2:] != two.shape[2:]:
            found, wanted = (" x ".join(map(str, maps.shape[2:])) for maps in (one, two))
            raise ValueError(
                f"distillation: {stage} of the student gives {found} places, of the teacher "
                f"{wanted}; set features to 0"
            )


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[Callable[[], list[Tensor]]]:
    """While inside, keep what each module returned last, until it is asked for."""
    kept: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            kept[index] = output

        return hook

    def take() -> list[Tensor]:
        if len(kept) != len(modules):
            raise RuntimeError("distillation: the network has not run since the last loss")
        # Taken away, so that a step's activations do not outlive it.
        return [kept.pop(index) for index in range(len(modules))]

    handles = [module.register_forward_hook(keep(i)) for i, module in enumerate(modules)]
    try:
        yield take
    finally:
        for handle in handles:
            handle.remove()
        kept.clear()


def _stage_end(model: nn.Module, stage: str) -> nn.Module:
    """The module whose output is that of a stage."""
    if isinstance(model, fx.GraphModule):
        return _stage_end_of_graph(model, stage)
    found: nn.Module | None = dict(model.named_modules()).get(stage)
    if found is None or not any(True for _ in found.parameters()):  # an empty stage is none
        raise _lacks(stage)
    return found


def _stage_end_of_graph(graph: fx.GraphModule, stage: str) -> nn.Module:
    """The fake quantizer that rounds a stage's output.

    It is a module, so a forward hook sees what the next layer reads, and the graph, which is
    recompiled at every change of mode, stays as it is.
    """
    # In the order in which they run: all that a stage computes its output is made of, so that
    # its last operation is the one that gives it.
    inside = [node for node in graph.graph.nodes if stage in _modules_of(node)]
    if not inside:
        raise _lacks(stage)
    return _fake_quantizer(graph, inside[-1])


def _modules_of(node: fx.Node) -> list[str]:
    """Paths of the modules in whose forward a node was traced, the outermost first."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]


def _lacks(stage: str) -> ValueError:
    return ValueError(f"distillation: the student has no stage {stage}; set features to 0")


def _fake_quantizer(graph: fx.GraphModule, node: fx.Node) -> nn.Module:
    """The module that alone reads a node's output."""
    targets = [user.target for user in node.users if user.op == "call_module"]
    if len(targets) != 1:
        raise RuntimeError(
            f"distillation: {node.name} ends a stage but is read by {len(targets)} modules in "
            "place of one fake quantizer; this is a bug in PocketNest"
        )
    return graph.get_submodule(str(targets[0]))
