"""RQ-VAE (TIGER; Lee et al. 2022): encoder, decoder and residual codebooks learned together, as one ``Codebook``.

Codewords start by residual k-means on the first encoded embeddings and follow what falls to them by moving averages;
gradients pass the quantisation straight through. The same embeddings, settings, seed and number of threads give the same
codebook. torch is imported only to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.codebooks.codebook import Codebook, CodebookError, checked_embeddings, fit_residual_kmeans, require_fittable
from models.codebooks.dense_network import DenseNetwork

if TYPE_CHECKING:
    import torch

RqVaeProgress = Callable[[int, float], None]
"""Called after each epoch with its number (1-based) and the mean squared distance of an embedding to its
reconstruction during the epoch, in the unit of k-means' objective."""

_START_ITERATIONS: Final = 10  # k-means iterations of the start; the averages go on from there
_START_ROWS_PER_CODEWORD: Final = 16  # a batch smaller than that would start most codewords on single embeddings
_LEAST_COUNT: Final = 1e-6  # below, a codeword's average is all rounding: it stays where it is


@dataclass(frozen=True)
class RqVaeSettings:
    """hidden: widths of the encoder's inner layers, the decoder's in reverse; latent: d, the codewords' dimensions;
    commitment: weight of the commitment loss; decay: of the codewords' moving averages, per batch.
    """

    hidden: tuple[int, ...] = (512, 256, 128)
    latent: int = 32
    epochs: int = 100
    batch_size: int = 1024
    learning_rate: float = 1e-3
    commitment: float = 0.25
    decay: float = 0.99

    def __post_init__(self) -> None:
        for name in ("latent", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise CodebookError(f"RQ-VAE: {name} must be at least 1, not {getattr(self, name)}")
        if any(width < 1 for width in self.hidden):
            raise CodebookError(f"RQ-VAE: hidden widths must be at least 1, not {self.hidden}")
        if self.learning_rate <= 0 or self.commitment < 0:
            raise CodebookError(
                f"RQ-VAE: learning_rate must be above 0 and commitment not below, not {self.learning_rate} and "
                f"{self.commitment}"
            )
        if not 0 <= self.decay < 1:
            raise CodebookError(f"RQ-VAE: decay must lie in [0, 1), not {self.decay}")


def fit_rq_vae(
    embeddings: ArrayLike,
    *,
    layers: int,
    size: int,
    settings: RqVaeSettings | None = None,
    seed: int = 0,
    progress: RqVaeProgress | None = None,
) -> Codebook:
    """A codebook of ``layers`` × ``size`` codewords in a latent space, with encoder and decoder, from embeddings
    float32 (N, D), N ≥ ``size``.

    Loss of a row: mean over D of (x − x̂)² + commitment · Σ over layers of the mean over d of (z − sg[ẑ up to that
    layer])² (Lee et al. 2022, § 3.1), with x scaled to variance 1; the scaling ends up inside encoder and decoder.
    After each epoch but the last, codewords that nothing fell to are moved to residuals of their layer.
    Raises ``CodebookError`` for embeddings or parameters that no codebook can be fitted with.
    """
    import torch

    settings = settings or RqVaeSettings()
    given = np.asarray(embeddings)
    if given.ndim != 2 or given.shape[1] < 1:
        raise CodebookError(f"embeddings must be float32 (N, dimension), not of shape {given.shape}")
    rows = checked_embeddings(given, given.shape[1])
    require_fittable(rows, size)
    mean = rows.mean(axis=0, dtype=np.float64)
    # One scale for all dimensions, so that the loss stays proportional to the distance; 1 if all embeddings are alike.
    scale = float(np.sqrt(((rows - mean) ** 2).mean())) if len(rows) else 1.0
    scale = scale if scale > 0 else 1.0
    scaled = torch.from_numpy(((rows - mean) / scale).astype(np.float32))
    dimension = rows.shape[1]
    widths = (dimension, *settings.hidden, settings.latent)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        encoder, decoder = _dense(widths), _dense(widths[::-1])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(scaled), generator=generator)
    with torch.no_grad():
        first = encoder(scaled[order[: max(settings.batch_size, _START_ROWS_PER_CODEWORD * size)]])
    start = fit_residual_kmeans(first.numpy(), layers=layers, size=size, iterations=_START_ITERATIONS, seed=seed)
    quantiser = ResidualQuantiser(torch.tensor(start.codewords), settings.decay)

    steps = settings.epochs * -(-len(scaled) // settings.batch_size)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0.01 * settings.learning_rate)
    for epoch in range(1, settings.epochs + 1):
        error = 0.0
        for first_row in range(0, len(scaled), settings.batch_size):
            batch = scaled[order[first_row : first_row + settings.batch_size]]
            latent = encoder(batch)
            quantised, committed = quantiser.learn(latent)
            reconstruction = torch.nn.functional.mse_loss(decoder(quantised), batch)
            loss = reconstruction + settings.commitment * committed
            if not torch.isfinite(loss):
                raise CodebookError(
                    f"RQ-VAE: the loss is NaN or infinite in epoch {epoch} of {settings.epochs}; nothing was kept. Fit with a "
                    f"learning rate smaller than {settings.learning_rate:g}, scale the embeddings to length 1, or take k-means"
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            error += float(reconstruction.detach()) * len(batch)
        if epoch < settings.epochs:
            quantiser.revive(latent.detach(), generator)
            order = torch.randperm(len(scaled), generator=generator)
        if progress is not None:
            progress(epoch, error / len(scaled) * dimension * scale**2)
    return Codebook(
        quantiser.codewords.numpy(), _unscaled_encoder(encoder, mean, scale), _unscaled_decoder(decoder, mean, scale)
    )


class ResidualQuantiser:
    """Residual codebooks float32 (L, M, d) that follow, by moving averages, the residuals that fall to them."""

    def __init__(self, codewords: torch.Tensor, decay: float) -> None:
        import torch

        self.codewords = codewords.clone()
        self.used = torch.zeros(codewords.shape[:2], dtype=torch.int64)  # since the last revival
        self._decay = decay
        self._counts = torch.ones(codewords.shape[:2])
        self._sums = codewords.clone()

    def learn(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent (B, d) → quantised (B, d), through which gradients pass straight, and the commitment loss (scalar);
        the codewords then take a step towards the batch.
        """
        import torch

        residual = latent.detach()
        quantised = torch.zeros_like(residual)
        committed = torch.zeros(())
        for layer_index in range(len(self.codewords)):
            chosen = self._nearest(residual, layer_index)
            nearest = self.codewords[layer_index, chosen]
            quantised = quantised + nearest
            committed = committed + (latent - quantised).square().mean()
            self._follow(residual, chosen, layer_index)
            residual = residual - nearest
        return latent + (quantised - latent).detach(), committed

    def revive(self, latent: torch.Tensor, generator: torch.Generator) -> int:
        """Moves codewords that nothing fell to since the last revival onto random residuals of latent (B, d), and says
        how many they were.
        """
        import torch

        residual, revived = latent, 0
        for layer_index in range(len(self.codewords)):
            dead = torch.nonzero(self.used[layer_index] == 0).flatten()
            if len(dead):
                picked = residual[torch.randint(len(residual), (len(dead),), generator=generator)]
                self.codewords[layer_index, dead] = picked
                self._counts[layer_index, dead] = 1.0
                self._sums[layer_index, dead] = picked
                revived += len(dead)
            residual = residual - self.codewords[layer_index, self._nearest(residual, layer_index)]
        self.used.zero_()
        return revived

    def _nearest(self, residual: torch.Tensor, layer_index: int) -> torch.Tensor:
        codewords = self.codewords[layer_index]
        return (residual @ codewords.T - 0.5 * codewords.square().sum(dim=1)).argmax(dim=1)

    def _follow(self, residual: torch.Tensor, chosen: torch.Tensor, layer_index: int) -> None:
        import torch

        fallen = torch.bincount(chosen, minlength=self.codewords.shape[1])
        added = torch.zeros_like(self.codewords[layer_index]).index_add_(0, chosen, residual)
        counts, sums = self._counts[layer_index], self._sums[layer_index]
        counts.mul_(self._decay).add_(fallen, alpha=1 - self._decay)
        sums.mul_(self._decay).add_(added, alpha=1 - self._decay)
        alive = counts > _LEAST_COUNT
        self.codewords[layer_index, alive] = sums[alive] / counts[alive, None]
        self.used[layer_index] += fallen


def _dense(widths: Sequence[int]) -> torch.nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    import torch

    modules: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(widths):
        modules += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def _weights(network: torch.nn.Sequential) -> list[NDArray[np.float64]]:
    return [parameter.detach().numpy().astype(np.float64) for parameter in network.parameters()]


def _unscaled_encoder(network: torch.nn.Sequential, mean: NDArray[np.float64], scale: float) -> DenseNetwork:
    """The encoder for embeddings as they are: W(x − mean)/scale + b = (W/scale) x + (b − W mean/scale)."""
    weights = _weights(network)
    weights[0] = weights[0] / scale
    weights[1] = weights[1] - weights[0] @ mean
    return DenseNetwork.from_tensors([array.astype(np.float32) for array in weights])


def _unscaled_decoder(network: torch.nn.Sequential, mean: NDArray[np.float64], scale: float) -> DenseNetwork:
    """The decoder that gives embeddings as they were: scale (W z + b) + mean."""
    weights = _weights(network)
    weights[-2] = weights[-2] * scale
    weights[-1] = weights[-1] * scale + mean
    return DenseNetwork.from_tensors([array.astype(np.float32) for array in weights])
