"""Learning rates against torch's own schedulers and closed forms."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from vitreous.errors import VitreousError
from vitreous.recipe import ScheduleSection
from vitreous.training.schedule import Phase, Timeline, linear, onecycle, phase_at, phases


@pytest.mark.parametrize("total", [10, 176, 1000])
def test_onecycle_is_torchs(total: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    scheduler = OneCycleLR(optimizer, max_lr=1e-3, total_steps=total)
    timeline = Timeline([(0, total)])
    for step in range(total):
        factor, beta1 = onecycle(timeline.fraction(step) * total, total, 0.3)
        assert 1e-3 * factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert beta1 == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            scheduler.step()


def test_linear_rises_and_ends_at_zero() -> None:
    factors = [linear(step, 100, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(1 / 90)
    assert factors[100] == 0.0
    assert all(linear(step, 3, 0.0) > 0 for step in range(3))


def test_a_timeline_without_fits_is_a_straight_line() -> None:
    timeline = Timeline([(0, 40)])
    assert [timeline.fraction(step) for step in (0, 10, 40, 50)] == [0.0, 0.25, 1.0, 1.0]


def test_fits_are_continuous_and_reach_the_end() -> None:
    timeline = Timeline([(0, 100)])
    timeline.fit(50, 150)
    timeline.fit(100, 110)
    assert timeline.total == 110
    assert timeline.fraction(50) == pytest.approx(0.5)
    assert timeline.fraction(100) == pytest.approx(0.75)  # half of the second half
    assert timeline.fraction(105) == pytest.approx(0.875)
    assert timeline.fraction(110) == pytest.approx(1.0)
    fractions = [timeline.fraction(step) for step in range(111)]
    assert all(later > earlier for earlier, later in pairwise(fractions))


def test_a_later_fit_leaves_the_past_as_it_was() -> None:
    timeline = Timeline([(0, 100)])
    before = [timeline.fraction(step) for step in range(31)]
    timeline.fit(30, 60)
    assert [timeline.fraction(step) for step in range(31)] == before


def test_a_run_cannot_end_in_the_past() -> None:
    with pytest.raises(ValueError, match="cannot have 5 steps"):
        Timeline([(0, 100)]).fit(10, 5)


def test_phases_follow_each_other() -> None:
    section = ScheduleSection(small_sides=(0.5, 0.75), small_until=(0.2, 0.6))
    all_phases = phases(section, 32)
    assert all_phases == (Phase(0.2, 16), Phase(0.6, 24), Phase(1.0, 32))
    at = {0.0: 16, 0.19: 16, 0.2: 24, 0.59: 24, 0.6: 32, 0.99: 32, 1.0: 32}
    assert {fraction: all_phases[phase_at(all_phases, fraction)].side for fraction in at} == at
    assert phases(ScheduleSection(), 32) == (Phase(1.0, 32),)
    for bad in (
        {"small_sides": (0.5,)},
        {"small_sides": (2.0,), "small_until": (0.5,)},
        {"small_sides": (0.5, 0.5), "small_until": (0.5, 0.4)},
    ):
        with pytest.raises(VitreousError, match="small_"):
            ScheduleSection(**bad)


def test_no_phase_is_without_pixels() -> None:
    section = ScheduleSection(small_sides=(0.01,), small_until=(0.5,))
    with pytest.raises(VitreousError, match=r"small_sides has 0\.01.*32.*0\.031"):
        phases(section, 32)
    assert phases(section, 100)[0].side == 1
