"""Runs that stay near the policy they began with: loss.reference_coeff, loss.reference_target."""

from __future__ import annotations

import shutil

import pytest
import torch


def test_the_reference_is_what_policy_init_holds_and_survives_a_resumption(make_training, begun, tmp_path):
    options = (f"policy.init={begun}", "loss.reference_coeff=0.5", "optim.lr=3e-3")
    training = make_training("near", *options)
    for own, kept in zip(training.policy.parameters(), training.loss.reference.parameters(), strict=True):
        torch.testing.assert_close(own, kept, rtol=0, atol=0)
    data = next(iter(training.collection))
    row = training.learner.learn(data, 0)
    assert row["train/kl_reference"] > 0
    with torch.no_grad():
        training.loss.reference_coeff.fill_(0.25)
    training.progress.frames = 128  # a frame is saved once
    training.save()
    shutil.copytree(tmp_path / "near", tmp_path / "again")  # the other is locked while it lives
    resumed = make_training("again", *options)
    assert resumed.loss.reference_coeff == 0.25
    for before, after in zip(training.loss.reference.parameters(), resumed.loss.reference.parameters(), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize(("target", "factor"), [(1e-9, 2), (1e6, 0.5)])
def test_the_weight_follows_the_divergence(make_training, begun, target, factor):
    # so large a rate that one sample of the divergence for each state is surely positive
    near = [f"policy.init={begun}", "loss.reference_coeff=0.5", f"loss.reference_target={target}"]
    training = make_training("near", *near, "optim.schedule=constant", "optim.lr=1e-2")
    training.learner.learn(next(iter(training.collection)), 0)
    assert training.loss.reference_coeff == 0.5 * factor


@pytest.mark.parametrize(("target", "edge"), [(1e-9, 1e6), (1e6, 1e-6)])
def test_the_weight_stays_between_numbers_that_it_can_come_back_from(make_training, begun, target, edge):
    near = [f"policy.init={begun}", "loss.reference_coeff=0.5", f"loss.reference_target={target}"]
    training = make_training("near", *near, "optim.schedule=constant", "optim.lr=1e-2")
    with torch.no_grad():
        training.loss.reference_coeff.fill_(edge)
    training.learner.learn(next(iter(training.collection)), 0)
    assert training.loss.reference_coeff == pytest.approx(edge)
