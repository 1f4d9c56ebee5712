"""The leading eigenvectors of a positive semi-definite matrix, from the matrix itself or from one sketch of it."""

from __future__ import annotations

import torch
from torch import Tensor

from loralign.lora.factors import fixed_signs

_Pairs = tuple[Tensor, Tensor]
# Rows above which a whole matrix is not decomposed completely.
_COMPLETE = 1024


def gaussian_test_matrix(rows: int, width: int, seed: int) -> Tensor:
    """``Θ (rows, width)`` whose range is uniformly distributed, float32 with values that bfloat16 represents.

    It is the Q factor of a Gaussian matrix, so orthonormal up to the rounding to bfloat16, by which products with the
    gradients of a bfloat16 model become exact at that type's speed. Made on the CPU in float64 whatever the device, so
    that all processes and devices hold the same matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    frame: Tensor = torch.linalg.qr(gaussian).Q
    return frame.to(torch.bfloat16).float()


def leading_eigenvectors(
    moment: Tensor, test: Tensor | None, count: int, work: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors and eigenvalues of a positive semi-definite ``F (m, m)``.

    From ``F`` itself this is its eigendecomposition. From a sketch ``Y = F Θ`` it is that of the Nyström approximation
    ``Y (ΘᵀY)⁺ Yᵀ``, which never exceeds ``F`` and equals it where the rank of ``F`` is at most ``w``; it is computed
    for ``F + νI`` with a small ``ν`` that is taken off again, so that rounding cannot make ``ΘᵀY`` indefinite (Tropp,
    Yurtsever, Udell and Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from streaming data",
    NeurIPS 2017, algorithm 3; our ``ν`` is that of the dtype which the sums were kept in).

    Args:
        moment: ``F (m, m)``, or ``Y (m, w)`` where a test matrix is given, in the dtype of its sums.
        test: ``Θ (m, w)``, or ``None``.
        count: the most pairs to return; none are that rounding cannot tell from zero.
        work: dtype to compute in; float32 is good for three digits.

    Returns:
        ``U (m, q)`` with orthonormal columns, signs fixed, and the eigenvalues ``(q,)``, descending.
    """
    resolution = _resolution(moment)
    matrix = moment.to(work)
    if test is not None:
        values, vectors = _sketched(matrix, test.to(work), count, resolution)
    elif len(matrix) > max(_COMPLETE, 4 * count):
        values, vectors = _krylov(matrix, count, max(10 * torch.finfo(moment.dtype).eps, 100 * torch.finfo(work).eps))
    else:
        values, vectors = _whole(matrix)
    kept = min(count, int((values > values[:1].clamp_min(0) * resolution).sum()))
    vectors = vectors[:, :kept]
    return vectors * fixed_signs(vectors) if kept else vectors, values[:kept]


def leading_eigenvectors_of_many(moments: Tensor, tests: Tensor | None, count: int) -> list[_Pairs]:
    """As :func:`leading_eigenvectors` for each of ``L`` layers of one shape, in batched operations, as a GPU wants.

    Computes in float64, which a GPU does not round to TF32. Whole matrices are decomposed completely, however large.

    Args:
        moments: ``F (L, m, m)`` or ``Y (L, m, w)``.
        tests: ``Θ (L, m, w)``, or ``None``.
        count: the most pairs of each.

    Returns:
        The pairs of every layer, the eigenvalues on the CPU.
    """
    resolution = _resolution(moments[0])
    matrices = moments.double()
    if tests is None:
        values, vectors = _whole(matrices)
        sound = [True] * len(moments)
    else:
        values, vectors, usable = _sketched_many(matrices, tests.double(), count, resolution)
        sound = usable.tolist()
    kept = (values > values[:, :1].clamp_min(0) * resolution).sum(dim=1).clamp(max=count).tolist()
    values = values.cpu()
    found = []
    for row, number in enumerate(kept):
        if sound[row]:
            own = vectors[row, :, :number]
            found.append((own * fixed_signs(own) if number else own, values[row, :number]))
        else:
            # Nothing but zeros, or what rounding has made indefinite.
            alone = leading_eigenvectors(moments[row], None if tests is None else tests[row], count)
            found.append((alone[0], alone[1].cpu()))
    return found


def _resolution(moment: Tensor) -> float:
    """Relative to the largest eigenvalue, below which rounding cannot be told from one."""
    resolution: float = 8 * len(moment) ** 0.5 * torch.finfo(moment.dtype).eps
    return resolution


def _whole(matrix: Tensor) -> _Pairs:
    """All eigenpairs of one matrix, or of a batch."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return values.flip(-1), vectors.flip(-1)


def _sketched(sketch: Tensor, test: Tensor, count: int, resolution: float) -> _Pairs:
    shift = resolution * torch.linalg.vector_norm(sketch) / sketch.shape[1] ** 0.5
    if not bool(shift > 0):
        return sketch.new_zeros(0), sketch[:, :0]
    shifted = sketch + shift * test
    core = test.mT @ shifted
    # F ≈ E Eᵀ; its singular values come from EᵀE, whose squared condition number float64 bears.
    root = _times_inverse_root(shifted, (core + core.mT) / 2, shift)
    values, rotation = _whole(root.mT @ root)
    positive = values[:count] > 0
    values, rotation = values[:count][positive], rotation[:, :count][:, positive]
    return (values - shift).clamp_min(0), root @ (rotation / values.sqrt())


def _sketched_many(sketches: Tensor, tests: Tensor, count: int, resolution: float) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`_sketched` of a batch, pairs that are not positive with eigenvalue 0, and for which layers it holds."""
    shifts = resolution * torch.linalg.vector_norm(sketches, dim=(1, 2)) / sketches.shape[2] ** 0.5
    shifted = sketches + shifts[:, None, None] * tests
    cores = tests.mT @ shifted
    triangles, failures = torch.linalg.cholesky_ex((cores + cores.mT) / 2)
    usable = (failures == 0) & (shifts > 0)
    # A layer that is done apart must not stop the others with numbers that are not finite.
    triangles = torch.where(
        usable[:, None, None], triangles, torch.eye(cores.shape[-1], dtype=cores.dtype, device=cores.device)
    )
    roots: Tensor = torch.linalg.solve_triangular(triangles.mT, shifted, upper=True, left=False)
    values, rotations = _whole(roots.mT @ roots)
    values, rotations = values[:, :count], rotations[:, :, :count]
    positive = values > 0
    scaled = rotations / torch.where(positive, values, torch.ones_like(values)).sqrt()[:, None, :]
    rest = (values - shifts[:, None]).clamp_min(0)
    return torch.where(positive, rest, torch.zeros_like(rest)), roots @ scaled, usable


def _times_inverse_root(left: Tensor, core: Tensor, shift: Tensor) -> Tensor:
    """``left · R`` with ``R Rᵀ = core⁻¹``, or the pseudo-inverse where rounding has made the core indefinite."""
    triangle, failure = torch.linalg.cholesky_ex(core)
    if int(failure) == 0:
        solved: Tensor = torch.linalg.solve_triangular(triangle.mT, left, upper=True, left=False)
        return solved
    values, vectors = _whole(core)
    sound = values > shift / 2
    return left @ (vectors[:, sound] / values[sound].sqrt())


def _krylov(matrix: Tensor, count: int, tolerance: float, depth: int = 4, restarts: int = 40) -> _Pairs:
    """Leading eigenpairs by restarted block Krylov iteration with Rayleigh-Ritz.

    Each restart spans ``[V, F V, …, F^depth V]`` from the Ritz vectors of the one before, until the residual of every
    wanted pair is ``tolerance`` of the largest eigenvalue; a spectrum that resists is decomposed completely.
    """
    generator = torch.Generator().manual_seed(0)
    width = count + 16
    block = torch.randn(len(matrix), width, generator=generator, dtype=matrix.dtype).to(matrix.device)
    for _ in range(restarts):
        blocks = [torch.linalg.qr(block).Q]
        for _ in range(depth):
            blocks.append(torch.linalg.qr(matrix @ blocks[-1]).Q)
        frame = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
        image = matrix @ frame
        values, rotation = _whole(frame.mT @ image)
        values, block = values[:width], frame @ rotation[:, :width]
        residual = image @ rotation[:, :count] - block[:, :count] * values[:count]
        if float(torch.linalg.vector_norm(residual, dim=0).max()) <= tolerance * float(values[0].clamp_min(0)):
            return values[:count], block[:, :count]
    return _whole(matrix)
