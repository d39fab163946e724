"""How the channels of one tensor axis lie in the wide and in the narrow network, as equations that refine themselves.

A `Layout` stands for one axis: its size in both networks and, as far as it is known, how it is made up. It is free
(nothing known yet), the same in both networks, a concatenation of layouts, or a row-major product of layouts (a packed
qkv is 3 x heads x head_dim). Operations unify, cut and factor layouts; a free one takes the structure that is asked of
it, in place. What is still free at the end maps to the first channels.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import numpy as np

Size = tuple[int, int]


class LayoutError(ValueError):
    """Two layouts contradict each other, or a structure is asked for that a layout does not have."""


class Layout:
    """One axis of a tensor in both networks.

    Args:
        wide: size in the wide network.
        narrow: size in the narrow network.
    """

    __slots__ = ("alias", "form", "narrow", "parts", "wide")

    def __init__(self, wide: int, narrow: int) -> None:
        if narrow > wide:
            raise LayoutError(f"{narrow} channels in the narrow network but {wide} in the wide one")
        self.wide, self.narrow = wide, narrow
        self.form: Literal["free", "same", "cat", "product"] = "same" if wide == narrow else "free"
        self.parts: list[Layout] = []
        self.alias: Layout | None = None

    @property
    def size(self) -> Size:
        """Sizes in the wide and in the narrow network."""
        return self.wide, self.narrow

    def __deepcopy__(self, memo: dict[int, object]) -> "Layout":
        """A layout belongs to the structure of a network, which copies share."""
        return self

    def become(self, form: Literal["cat", "product"], parts: Sequence["Layout"]) -> None:
        """Give a free layout its structure."""
        self.form, self.parts = form, list(parts)


def find(layout: Layout) -> Layout:
    """The layout that stands for this one."""
    while layout.alias is not None:
        layout = layout.alias
    return layout


def concatenation(parts: Sequence[Layout]) -> Layout:
    """The layout of axes put one behind the other."""
    if len(parts) == 1:
        return find(parts[0])
    result = Layout(sum(p.wide for p in parts), sum(p.narrow for p in parts))
    if any(find(p).form != "same" for p in parts):
        result.become("cat", parts)
    return result


def product(parts: Sequence[Layout]) -> Layout:
    """The layout of axes merged in row-major order."""
    factors: list[Layout] = []
    for part in map(find, parts):
        if part.size == (1, 1):
            continue
        if factors and part.form == "same" and find(factors[-1]).form == "same":
            factors[-1] = Layout(factors[-1].wide * part.wide, factors[-1].narrow * part.narrow)
        else:
            factors.append(part)
    if len(factors) < 2:
        return factors[0] if factors else Layout(1, 1)
    result = Layout(prod(f.wide for f in factors), prod(f.narrow for f in factors))
    result.become("product", factors)
    return result


def cut(layout: Layout, sizes: Sequence[Size]) -> list[Layout]:
    """Cut an axis into consecutive pieces of the given sizes.

    Raises:
        LayoutError: the layout has no boundary there.
    """
    layout = find(layout)
    sizes = list(sizes)
    if (sum(w for w, _ in sizes), sum(n for _, n in sizes)) != layout.size:
        raise LayoutError(f"pieces {sizes} do not make up {layout.size}")
    if len(sizes) == 1:
        return [layout]
    if layout.form == "same":
        if any(w != n for w, n in sizes):
            raise LayoutError(f"pieces {sizes} of an axis of {layout.wide} that both networks share")
        return [Layout(w, n) for w, n in sizes]
    if layout.form == "free":
        layout.become("cat", [Layout(w, n) for w, n in sizes])
        return list(layout.parts)
    if layout.form == "product":
        _spread(layout, sizes)
    return _regroup(layout, sizes)


def _spread(layout: Layout, sizes: Sequence[Size]) -> None:
    """Turn a product into a concatenation along its first factor, which a cut at `sizes` may have to refine."""
    first, rest = find(layout.parts[0]), product(layout.parts[1:])
    if first.form == "same":
        layout.become("cat", [rest] * first.wide)
        return
    if first.form != "cat":
        if any(w % rest.wide or n % rest.narrow for w, n in sizes):
            raise LayoutError(f"an axis of {layout.size} in groups of {rest.size} cannot be cut into {list(sizes)}")
        cut(first, [(w // rest.wide, n // rest.narrow) for w, n in sizes])
    layout.become("cat", [product([piece, rest]) for piece in first.parts])


def _regroup(layout: Layout, sizes: Sequence[Size]) -> list[Layout]:
    """The pieces of a concatenation grouped, and cut where a piece is longer than what is asked for."""
    pending = [find(p) for p in reversed(layout.parts)]
    groups: list[list[Layout]] = []
    for wide, narrow in sizes:
        group: list[Layout] = []
        while wide or narrow:
            if not pending:
                raise LayoutError(f"pieces {list(sizes)} do not make up {layout.size}")
            piece = pending.pop()
            if piece.wide > wide or piece.narrow > narrow:
                head, tail = _cut_in_two(piece, (wide, narrow))
                pending.append(tail)
                piece = head
            group.append(piece)
            wide, narrow = wide - piece.wide, narrow - piece.narrow
        groups.append(group)
    return [concatenation(group) for group in groups]


def _cut_in_two(piece: Layout, head: Size) -> tuple[Layout, Layout]:
    if head[0] > piece.wide or head[1] > piece.narrow or 0 in head:
        raise LayoutError(f"an axis of {piece.size} has no boundary at {head}")
    first_piece, second_piece = cut(piece, [head, (piece.wide - head[0], piece.narrow - head[1])])
    return first_piece, second_piece


def factor(layout: Layout, outer: Size) -> tuple[Layout, Layout]:
    """Write an axis as a row-major product of an outer axis of the given sizes and an inner one.

    Raises:
        LayoutError: the layout is no such product.
    """
    layout = find(layout)
    if 0 in outer or layout.wide % outer[0] or layout.narrow % outer[1]:
        raise LayoutError(f"an axis of {layout.size} has no factor of {outer}")
    inner = layout.wide // outer[0], layout.narrow // outer[1]
    if outer == (1, 1):
        return Layout(1, 1), layout
    if inner == (1, 1):
        return layout, Layout(1, 1)
    if layout.form == "product":
        return _factor_product(layout, outer)
    if layout.form == "cat":
        return _factor_cat(layout, outer, inner)
    first, second = Layout(*outer), Layout(*inner)
    if layout.form == "same":
        if first.form != "same" or second.form != "same":
            raise LayoutError(f"an axis of {layout.wide} that both networks share has no factor of {outer}")
    else:
        layout.become("product", [first, second])
    return first, second


def _factor_product(layout: Layout, outer: Size) -> tuple[Layout, Layout]:
    taken: list[Layout] = []
    left = list(layout.parts)
    wide, narrow = outer
    while (wide, narrow) != (1, 1):
        part = find(left.pop(0))
        if wide % part.wide or narrow % part.narrow:
            head, tail = factor(part, (wide, narrow))
            left.insert(0, tail)
            part = head
        taken.append(part)
        wide, narrow = wide // part.wide, narrow // part.narrow
    return product(taken), product(left)


def _factor_cat(layout: Layout, outer: Size, inner: Size) -> tuple[Layout, Layout]:
    if outer[0] == outer[1]:
        pieces = cut(layout, [inner] * outer[0])
        for piece in pieces[1:]:
            unify(pieces[0], piece)
        return Layout(*outer), find(pieces[0])
    pairs = [factor(p, (p.wide // inner[0], p.narrow // inner[1])) for p in map(find, layout.parts)]
    if any(i.size != inner for _, i in pairs):
        raise LayoutError(f"a concatenation of {layout.size} has no common factor of {inner}")
    for _, other in pairs[1:]:
        unify(pairs[0][1], other)
    return concatenation([o for o, _ in pairs]), find(pairs[0][1])


def unify(a: Layout, b: Layout) -> None:
    """State that two axes have the same channels in the same order.

    Raises:
        LayoutError: they cannot have.
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise LayoutError(f"axes of {a.size} and {b.size} meet")
    if a.form == "free" or b.form == "free":
        a, b = (a, b) if a.form == "free" else (b, a)
        a.alias = b
        return
    if a.form != "cat" and b.form == "cat":
        a, b = b, a
    if a.form == "cat":
        sizes = [p.size for p in a.parts]
        for piece, other in zip(list(a.parts), cut(b, sizes), strict=True):
            unify(piece, other)
    elif a.form == "product" and b.form == "product":
        _unify_products(a, b)
    elif a.form == "product" or b.form == "product":
        _unify_product_with_shared(a if a.form == "product" else b)
    b.alias = a


def _unify_products(a: Layout, b: Layout) -> None:
    first_a, first_b = find(a.parts[0]), find(b.parts[0])
    outer = min(first_a.size, first_b.size)
    outer_a, inner_a = factor(a, outer)
    outer_b, inner_b = factor(b, outer)
    unify(outer_a, outer_b)
    unify(inner_a, inner_b)


def _unify_product_with_shared(layout: Layout) -> None:
    if any(find(part).form != "same" for part in layout.parts):
        raise LayoutError(f"an axis of {layout.wide} that both networks share meets one that they do not")


def select(layout: Layout, chosen: Callable[[Layout], np.ndarray]) -> np.ndarray:
    """Positions on an axis, when `chosen` says which positions to take on each of its indivisible parts.

    Args:
        layout: the axis.
        chosen: from a free or shared layout to positions on it, int64.

    Returns:
        Positions in the wide network, int64.
    """
    layout = find(layout)
    if layout.form in ("free", "same"):
        return chosen(layout)
    parts = [find(p) for p in layout.parts]
    if layout.form == "cat":
        starts = np.cumsum([0, *(p.wide for p in parts[:-1])])
        return np.concatenate([start + select(p, chosen) for start, p in zip(starts, parts, strict=True)])
    result = select(parts[0], chosen)
    for part in parts[1:]:
        result = (result[:, None] * part.wide + select(part, chosen)[None, :]).ravel()
    return result


def channels(layout: Layout) -> np.ndarray:
    """For each channel of the narrow network, the one of the wide network that it takes: int64 (narrow,)."""
    return select(layout, lambda part: np.arange(part.narrow))


def positions(layout: Layout) -> list[tuple[Layout, np.ndarray, np.ndarray]]:
    """Where the free parts of an axis lie.

    Returns:
        For each occurrence of a free layout: the layout, positions on the axis and the channels of the layout that
        they are, both int64.
    """
    layout = find(layout)
    if layout.form == "free":
        return [(layout, np.arange(layout.wide), np.arange(layout.wide))]
    if layout.form == "same":
        return []
    parts = [find(p) for p in layout.parts]
    found = []
    if layout.form == "cat":
        starts = np.cumsum([0, *(p.wide for p in parts[:-1])])
        for start, part in zip(starts, parts, strict=True):
            found += [(leaf, start + at, channel) for leaf, at, channel in positions(part)]
        return found
    for i, part in enumerate(parts):
        before, after = prod(p.wide for p in parts[:i]), prod(p.wide for p in parts[i + 1 :])
        for leaf, at, channel in positions(part):
            grid = (np.arange(before)[:, None, None] * part.wide + at[None, :, None]) * after
            grid = grid + np.arange(after)[None, None, :]
            found.append((leaf, grid.ravel(), np.broadcast_to(channel[None, :, None], grid.shape).ravel()))
    return found
