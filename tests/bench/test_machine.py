"""What results say of the machine."""

import platform

import torch

from gatelab.bench.machine import machine


def test_a_gpu_has_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "NVIDIA H200"}.get)
    assert machine("cuda:1")["device"] == "cuda:1 (NVIDIA H200)"
    assert machine("cpu")["device"] == "cpu"


def test_without_a_list_of_processors_the_architecture_is_named(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert machine("cpu")["processor"] == platform.machine()
