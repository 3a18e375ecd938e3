"""Learning rates against those of the official code (golden values), and the shapes around them."""

import pytest

from solo_minent.config import load_recipe
from solo_minent.errors import UserError
from solo_minent.schedules import cosine, lr_factor
from solo_minent.schema import SchedulerConfig

# serdarozsoy/corinfomax-ssl @ c0b917e, learning rate of an epoch counted from 1.
CORINFOMAX = {
    (0.5, 1000, 1e-6): {
        1: 0.003,
        2: 0.058222222222222224,
        9: 0.44477777777777777,
        10: 0.5,
        11: 0.5,
        12: 0.49999874125390525,
        500: 0.25476019175643405,
        999: 6.034971703408365e-06,
        1000: 2.2587460947345163e-06,
    },
    (0.2, 100, 1e-6): {
        2: 0.024888888888888887,
        50: 0.12079156512593058,
        100: 6.191699350393337e-05,
    },
    (1.0, 400, 5e-3): {2: 0.11377777777777778, 200: 0.5265359063139394, 400: 0.005016141031027342},
}

# xinliu20/MEC @ 35045dc, learning rate of an iterations counted from 0 (100 epochs of 1251).
MEC = {
    0: 0.0,
    1: 0.0001598848828843233,
    6255: 1.0000799424414422,
    12509: 2.0,
    12510: 2.0,
    12511: 1.9999999996107127,
    62550: 1.1736481776669305,
    125099: 3.892871580646329e-10,
}


@pytest.mark.parametrize("run", CORINFOMAX)
def test_corinfomax_rates_per_epoch(run):
    lr, epochs, min_lr = run
    scheduler = SchedulerConfig(
        interval="epoch", warmup_epochs=10, warmup_start_lr=3e-3, min_lr=min_lr
    )
    factor = lr_factor(scheduler, lr, steps_per_epoch=7, total_epochs=epochs)
    for epoch, expected in CORINFOMAX[run].items():
        first_step = (epoch - 1) * 7
        for step in (first_step, first_step + 6):
            assert lr * factor(step) == pytest.approx(expected, rel=1e-12)


def test_mec_rates_per_iteration():
    factor = lr_factor(SchedulerConfig(warmup_epochs=10), 2.0, 1251, 100)
    for step, expected in MEC.items():
        assert 2.0 * factor(step) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_minent_warms_up_500_iterations_and_drops_near_the_end():
    scheduler = load_recipe("cifar10/minent").scheduler
    factor = lr_factor(scheduler, 1e-3, steps_per_epoch=390, total_epochs=1000)
    for step in (0, 1, 250, 499):
        assert factor(step) == pytest.approx((step + 1) / 500)
    assert factor(500) == factor(950 * 390 - 1) == 1
    assert factor(950 * 390) == pytest.approx(0.2)
    assert factor(975 * 390) == factor(1000 * 390 - 1) == pytest.approx(0.04)


def test_a_run_shorter_than_its_last_phase_has_no_drop():
    scheduler = SchedulerConfig(
        name="warmup_multistep", warmup_steps=1, lr_decay_epochs=[-50, -5], gamma=0.2
    )
    factor = lr_factor(scheduler, 1.0, steps_per_epoch=10, total_epochs=20)
    assert factor(0) == factor(149) == 1
    assert factor(150) == pytest.approx(0.2)


def test_restart_is_a_second_warm_up_and_cosine():
    scheduler = SchedulerConfig(
        warmup_epochs=2, restart_epoch=8, restart_lr=0.1, restart_warmup_epochs=1
    )
    factor = lr_factor(scheduler, 1.0, steps_per_epoch=10, total_epochs=12)
    assert factor(19) == factor(20) == 1
    assert factor(79) < 0.01
    assert factor(80) == 0
    assert factor(89) == factor(90) == pytest.approx(0.1)
    assert 0 < factor(119) < 0.001


def test_cosine_stays_at_its_end():
    assert cosine(0.996, 1.0, 0.0) == pytest.approx(0.996)
    assert cosine(0.996, 1.0, 0.5) == pytest.approx(0.998)
    assert cosine(0.996, 1.0, 1.5) == 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "linear"}, "scheduler is unknown: linear"),
        ({"interval": "minute"}, "scheduler interval is unknown: minute"),
        ({"restart_epoch": 3}, "scheduler restart is wrong"),
        ({"restart_epoch": 20, "restart_lr": 0.1}, "scheduler restart is wrong"),
    ],
)
def test_wrong_schedules_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        lr_factor(SchedulerConfig(**wrong), 1.0, 10, 10)


def test_the_restart_ends_at_the_same_share_of_its_peak():
    """TWIST on ImageNet: lr 4.0 falls to 4e-3, and 0.4 in the second stage to 4e-4."""
    scheduler = SchedulerConfig(warmup_epochs=10, min_lr=4e-3, restart_epoch=800, restart_lr=0.4)
    factor = lr_factor(scheduler, 4.0, steps_per_epoch=10, total_epochs=850)
    assert 4.0 * factor(7999) == pytest.approx(4e-3, rel=1e-2)
    assert 4.0 * factor(8499) == pytest.approx(4e-4, rel=1e-1)
