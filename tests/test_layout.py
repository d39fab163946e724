import pytest

from csd_plugin.slicing.layout import Layout, LayoutError, channels, concatenation, cut, factor, product, unify


def test_what_is_free_maps_to_the_first_channels():
    assert channels(Layout(8, 3)).tolist() == [0, 1, 2]
    assert channels(Layout(3, 3)).tolist() == [0, 1, 2]


def test_concatenations_and_products():
    assert channels(concatenation([Layout(4, 2), Layout(3, 3), Layout(2, 1)])).tolist() == [0, 1, 4, 5, 6, 7]
    assert channels(product([Layout(2, 2), Layout(4, 2)])).tolist() == [0, 1, 4, 5]
    assert channels(product([Layout(4, 2), Layout(2, 2)])).tolist() == [0, 1, 2, 3]


def test_unifying_gives_structure_in_either_order():
    for swap in (False, True):
        free, structured = Layout(8, 4), concatenation([Layout(6, 3), Layout(2, 1)])
        unify(*((structured, free) if swap else (free, structured)))
        assert channels(free).tolist() == [0, 1, 2, 6]


def test_unifying_reaches_what_was_shared_before():
    shared = Layout(4, 2)
    both = concatenation([shared, shared])
    unify(concatenation([Layout(2, 1)] * 2), shared)
    assert channels(both).tolist() == [0, 2, 4, 6]


def test_cuts_at_other_places_refine():
    whole = concatenation([Layout(4, 2), Layout(4, 2)])
    first, second = cut(whole, [(6, 3), (2, 1)])
    assert (first.size, second.size) == ((6, 3), (2, 1))
    assert channels(whole).tolist() == [0, 1, 4, 6]


def test_a_product_is_cut_along_its_first_factor():
    packed = product([Layout(3, 3), Layout(4, 2)])
    q, k, v = cut(packed, [(4, 2)] * 3)
    assert q.size == k.size == v.size == (4, 2)
    grouped = product([Layout(4, 2), Layout(4, 4)])
    unify(grouped, concatenation([product([Layout(2, 1), Layout(4, 4)])] * 2))
    assert channels(grouped).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_concatenation_has_groups():
    whole = concatenation([Layout(8, 4), Layout(8, 4)])
    outer, inner = factor(whole, (4, 4))
    assert (outer.size, inner.size) == ((4, 4), (4, 2))
    assert channels(whole).tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    shuffled = concatenation([Layout(8, 4), Layout(4, 4)])
    outer, inner = factor(shuffled, (3, 2))
    assert (outer.size, inner.size) == ((3, 2), (4, 4))


@pytest.mark.parametrize(
    "contradiction",
    [
        lambda: Layout(2, 4),
        lambda: unify(Layout(8, 4), Layout(8, 2)),
        lambda: cut(Layout(4, 4), [(3, 2), (1, 2)]),
        lambda: cut(Layout(8, 4), [(4, 4), (4, 0), (1, 1)]),
        lambda: factor(Layout(6, 4), (4, 2)),
        lambda: factor(Layout(12, 12), (4, 3)),
        lambda: unify(concatenation([Layout(6, 2), Layout(2, 2)]), concatenation([Layout(2, 2), Layout(6, 2)])),
    ],
)
def test_contradictions_are_errors(contradiction):
    with pytest.raises(LayoutError):
        contradiction()
