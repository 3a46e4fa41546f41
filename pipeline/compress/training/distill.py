"""Knowledge distillation: the trained float network teaches the one that is made smaller.

    with distillation(student, teacher, config) as adjust_loss:
        fit(student, dataset, train_config, seed, Hooks(adjust_loss=adjust_loss))

What is minimised, with T the temperature and the mean over the images of a batch:

    (1 - weight) * loss against the labels
    + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T))
    + features * attention transfer at the ends of the stages

Soft targets: Hinton et al. 2015, https://arxiv.org/abs/1503.02531. Attention transfer: Zagoruyko
and Komodakis 2017, https://arxiv.org/abs/1612.03928; it compares where in the image both networks
respond, so their channel counts may differ, as they do after pruning.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline.networks.resnest.network import ResNeSt
from pipeline.networks.rewrites import Normalization, normalize_conv
from pipeline.recipe.training import DistillConfig

AdjustLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From (images, logits, loss against the labels) to the loss to minimise."""


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
    student: ResNeSt | fx.GraphModule,
    teacher: ResNeSt,
    config: DistillConfig,
    normalization: Normalization | None = None,
) -> Iterator[AdjustLoss]:
    """While inside, give the loss that teaches `student`, for `pipeline.train.Hooks`.

    The teacher is copied, and the copy is in evaluation mode and follows the images to their
    device. Of the student only the outputs at the ends of its stages are watched, and those only
    where `config.features` is above 0; nothing of that is left afterwards.

    Args:
        student: a network in either form, pruned or not, or a graph from `pipeline.qat.prepare`.
        teacher: takes normalised images; not changed.
        config: temperature and weights.
        normalization: that of the teacher's images, where the student takes pixel values 0..255.

    Raises:
        ValueError: the two have different numbers of classes or, with features, of stages or
            blocks.
    """
    _refuse_other_classes(student, teacher)
    if config.weight == 0 and config.features == 0:
        yield lambda images, logits, loss: loss
        return
    copied = copy.deepcopy(teacher)
    normalize = normalize_conv(normalization) if normalization else nn.Identity()
    frozen = nn.Sequential(normalize, copied).eval().requires_grad_(False)
    watched = config.features > 0
    ends = _stage_ends(student, teacher) if watched else []
    teacher_ends = _stage_ends(copied, teacher) if watched else []

    with _outputs(ends) as outputs, _outputs(teacher_ends) as teacher_outputs:

        def adjust(images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
            if next(copied.parameters()).device != images.device:
                frozen.to(images.device)
            # Not inference_mode: autograd cannot save its tensors where a loss uses them directly.
            with torch.no_grad():
                teacher_logits = frozen(images).to(logits.dtype)
            total = (1 - config.weight) * loss
            if config.weight > 0:
                soft = soft_target_loss(logits, teacher_logits, config.temperature)
                total = total + config.weight * soft
            if watched:
                total = total + config.features * attention_transfer(outputs(), teacher_outputs())
            return total

        yield adjust


def _refuse_other_classes(student: nn.Module, teacher: nn.Module) -> None:
    # The classifier has this name in every form, and its outputs come first in either layout.
    found, wanted = (model.get_parameter("fc.weight").shape[0] for model in (student, teacher))
    if found != wanted:
        raise ValueError(
            f"distillation: the student has {found} classes, the teacher {wanted}; "
            "both must be trained on the same ones"
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


def _stage_ends(model: ResNeSt | fx.GraphModule, teacher: ResNeSt) -> list[nn.Module]:
    """The modules whose outputs are those of the stages, in order."""
    depths = [len(stage) for stage in teacher.stages() if len(stage)]
    if isinstance(model, fx.GraphModule):
        return _stage_ends_of_graph(model, depths)
    stages: list[nn.Module] = [stage for stage in model.stages() if len(stage)]
    if len(stages) != len(depths):
        raise ValueError(
            f"distillation: the student has {len(stages)} stages, the teacher {len(depths)}; "
            "set features to 0"
        )
    return stages


def _stage_ends_of_graph(graph: fx.GraphModule, depths: Sequence[int]) -> list[nn.Module]:
    """The fake quantizers that round the outputs of each stage's last block.

    They are modules, so a forward hook sees what the next layer reads, and the graph, which is
    recompiled at every change of mode, stays as it is.
    """
    last: dict[int, fx.Node] = {}
    for node in graph.graph.nodes:
        block = _block_of(node)
        if block is not None:
            last[block] = node  # the nodes stand in the order in which they run
    if sorted(last) != list(range(sum(depths))):
        raise ValueError(
            f"distillation: the student has {len(last)} blocks, the teacher {sum(depths)}; "
            "set features to 0"
        )
    return [_fake_quantizer(graph, last[end - 1]) for end in itertools.accumulate(depths)]


def _block_of(node: fx.Node) -> int | None:
    """Number of the `DeployBlock` in whose own forward a node was traced, if in one."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path, _ = list(stack.values())[-1]
    found = re.fullmatch(r"blocks\.(\d+)", path)
    return int(found[1]) if found else None


def _fake_quantizer(graph: fx.GraphModule, node: fx.Node) -> nn.Module:
    """The module that alone reads a node's output."""
    targets = [user.target for user in node.users if user.op == "call_module"]
    if len(targets) != 1:
        raise RuntimeError(
            f"distillation: {node.name} ends a stage but is read by {len(targets)} modules in "
            "place of one fake quantizer; this is a bug in PocketNest"
        )
    return graph.get_submodule(str(targets[0]))
