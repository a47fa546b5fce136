"""Long recordings that are encoded as a whole: told of, never refused."""

import subprocess
import sys

import pytest
import torch
from helpers.encoders import ONE_BLOCK

from espnet_omnisparse.nn import recording

# address space for the program as it is, and a part of what 13 minutes take
TOO_LONG = """
import resource, sys
sys.path.insert(0, {tests!r})
import torch
from helpers.encoders import ONE_BLOCK
from espnet_omnisparse.errors import one_sentence
encoder = ONE_BLOCK[{task!r}]().eval()
feats, lengths = torch.randn(1, 80_000, 20), torch.tensor([80_000])
used = 1024 * int(open("/proc/self/status").read().split("VmSize:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 10**9, resource.RLIM_INFINITY))
with one_sentence(), torch.no_grad():
    encoder(feats, lengths)
"""


@pytest.mark.parametrize("task", ONE_BLOCK)
def test_a_long_recording_is_told_of_and_encoded_all_the_same(
    task, monkeypatch, caplog
):
    encoder = ONE_BLOCK[task]().eval()
    feats, lengths = torch.randn(1, 400, 20), torch.tensor([400])
    with torch.no_grad():
        expected = encoder(feats, lengths)[0]
        assert not caplog.records
        monkeypatch.setattr(recording, "LONG", 1e5)
        assert torch.equal(encoder(feats, lengths)[0], expected)
        (told,) = caplog.messages
        assert "99 encoder frames" in told and "30 s" in told
        encoder(feats[:, :100], lengths // 4)
        assert len(caplog.records) == 1
    encoder.train()(feats, lengths)
    assert len(caplog.records) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
@pytest.mark.parametrize("task", ONE_BLOCK)
def test_a_recording_that_does_not_fit_gets_one_sentence(task, request):
    tests = str(request.path.parents[1])
    done = subprocess.run(
        [sys.executable, "-c", TOO_LONG.format(tests=tests, task=task)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("error: This recording is too long for the memory")
    assert "segments of up to 30 s" in sentence


def test_two_minutes_of_eight_heads_are_long_and_half_a_minute_is_not(caplog):
    encoder = ONE_BLOCK["asr"]().eval()
    encoder.encoders[0].self_attn.h = 8
    with recording.telling_if_long(encoder, 30 * 25):
        assert not caplog.records
    with recording.telling_if_long(encoder, 4 * 60 * 25):
        (told,) = caplog.messages
    assert "about 9 GB" in told
