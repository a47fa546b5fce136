"""What ESPnet3 counted is what sclite counts."""

import pytest
from espnet3.systems.esp2_asr.metrics.wer import WER
from helpers.recipes import run_sclite

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.report.scores import read_scores

REFERENCES = ("a b c d", "e f", "g", "h i j")
HYPOTHESES = ("a x c", "e f", "g h", "i j")


def decoded(exp, hypotheses):
    """A test set as ESPnet3's stages `infer` and `measure` leave it."""
    folder = exp / "inference" / "test"
    folder.mkdir(parents=True)
    lines = [f"{number} {text}\n" for number, text in enumerate(hypotheses)]
    (folder / "text.scp").write_text("".join(lines))
    metric = WER()
    metric.collect_artifacts = True
    # in batches, as ESPnet3 does
    for part in (slice(0, 3), slice(3, 4)):
        metric.update(ref=list(REFERENCES[part]), hyp=list(hypotheses[part]))
    metric.write_artifacts(folder)
    return folder, metric.compute()["WER"]


def test_espnet3_s_counts_are_those_of_sclite(tmp_path, capsys):
    _, wer = decoded(tmp_path / "three", HYPOTHESES)
    scored = tmp_path / "two" / "decode" / "test" / "score_wer"
    scored.mkdir(parents=True)
    files = (
        "".join(f"{text} (s-{number})\n" for number, text in enumerate(texts))
        for texts in (REFERENCES, HYPOTHESES)
    )
    run_sclite(scored, *files)
    (scored / "result.txt").write_text(capsys.readouterr().out)
    (two,) = read_scores(tmp_path / "two", "wer").values()
    assert read_scores(tmp_path / "three", "wer") == {"inference/test": two}
    assert two.err == pytest.approx(wer, abs=0.05)
    assert read_scores(tmp_path / "three", "cer") == {}


def test_without_an_error_there_is_none(tmp_path):
    decoded(tmp_path, REFERENCES)
    (score,) = read_scores(tmp_path, "wer").values()
    assert (score.sentences, score.words) == (4, 10)
    assert (score.corr, score.err, score.sentence_err) == (100.0, 0.0, 0.0)


def test_what_is_not_whole_is_told(tmp_path):
    folder, _ = decoded(tmp_path, HYPOTHESES)
    (folder / "wer_alignment").write_text("")
    with pytest.raises(UserError, match="infer and measure"):
        read_scores(tmp_path, "wer")
