"""Plans: halves, kinds and how many of each."""

from __future__ import annotations

from psi_engine.validation.plan import HALVES, plan_units, split_classes


def test_halves_are_disjoint_whole_and_keyed() -> None:
    halves = split_classes(list(range(201)), 0)
    one, two = (set(halves[name]) for name in HALVES)
    assert len(one) == 101
    assert one | two == set(range(201))
    assert not one & two
    assert split_classes(list(range(200, -1, -1)), 0) == halves
    assert split_classes(list(range(201)), 1) != halves


def test_each_kind_has_its_share_in_each_half_and_classes_of_its_half() -> None:
    halves = split_classes(list(range(24)), 3)
    plans, notes = plan_units(halves, {}, 11, ("noise",), 3, repeat=True)
    assert notes == []
    kinds = ["mono", "poly2-unrelated", "poly3-unrelated", "poly5-unrelated", "noise"]
    for half, share in zip(HALVES, (6, 5), strict=True):
        here = [plan for plan in plans if plan.half == half]
        assert [plan.kind for plan in here] == [kind for kind in kinds for _ in range(share)]
        for plan in here:
            assert set(plan.classes) <= set(halves[half])
            size = {"mono": 1, "noise": 0, "poly2-unrelated": 2, "poly3-unrelated": 3}
            assert len(set(plan.classes)) == size.get(plan.kind, 5)


def test_without_repetition_kinds_run_out_and_say_so() -> None:
    parents = {label: (f"parent {label // 6}",) for label in range(12)}
    halves = {"tuning": [0, 1, 2, 3, 4, 5], "held-out": [6, 7, 8, 9, 10, 11]}
    plans, notes = plan_units(halves, parents, 40, ("noise",), 0, repeat=False)
    counts = {kind: sum(plan.kind == kind for plan in plans) for kind in {p.kind for p in plans}}
    # each half is one parent's classes: nothing is unrelated
    assert counts["mono"] == 12
    assert counts["noise"] == 40
    assert "poly2-unrelated" not in counts
    assert counts["poly5-related"] <= 12  # 6 choose 5 in each half
    groups = [plan.classes for plan in plans if plan.kind == "poly2-related"]
    assert len(groups) == len(set(groups))
    assert "mono: 12 of 40 units, the classes allow no more" in notes
    assert "poly2-unrelated: 0 of 40 units, the classes allow no more" in notes
