"""The tiny encoders that the study pretrains: the same in every process."""

import json
import subprocess
import sys

import torch

from icssl_lib.config import Study
from icssl_lib.encoders import load_text, tokenize
from icssl_lib.sources import synthetic
from icssl_lib.sources.synthetic.pretrain import pretrain_text, train_tokenizer

TITLES = synthetic.generic_titles(400, 0)


def test_tokenizer_is_the_same_in_another_process():
    """The order of hash maps in `tokenizers` differs from one process, and one call, to the next."""
    vocabulary = train_tokenizer(TITLES, 400).get_vocab()
    assert train_tokenizer(TITLES, 400).get_vocab() == vocabulary
    code = "import json, sys; from icssl_lib.sources.synthetic.pretrain import train_tokenizer\n"
    code += "json.dump(train_tokenizer(json.load(sys.stdin), 400).get_vocab(), sys.stdout)"
    titles = json.dumps(TITLES)
    done = subprocess.run([sys.executable, "-c", code], input=titles, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == vocabulary


def test_tokenizer_knows_whole_words_pieces_and_five_special_tokens():
    tokenizer = train_tokenizer(TITLES, 400)
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 400
    assert sorted(vocabulary.values()) == list(range(400))
    assert set(tokenizer.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert tokenizer.pad_token_id == 0
    assert any(len(token) > 4 and not token.startswith(("[", "##")) for token in vocabulary)
    ids = tokenize(tokenizer, TITLES, 64)["input_ids"]
    assert (ids != tokenizer.unk_token_id).all()
    assert "##a" not in tokenizer.tokenize("##a")  # an ordinary piece, not matched in a title's text


def test_pretrained_text_is_a_folder_with_the_same_weights_twice(tmp_path):
    tiny = {"titles": 200, "vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "text_epochs": 1}
    data = {"toy": {"source": "synthetic", "genre": "beauty"}}
    study = Study.model_validate({"study": "toy", "datasets": data, "pretrain": tiny})
    losses = [pretrain_text(study, tmp_path / name, progress=False).loss for name in ("one", "other")]
    assert list(losses[0]) == list(losses[1])
    (one, tokenizer), (other, _) = (load_text(str(tmp_path / name)) for name in ("one", "other"))
    assert tokenizer.model_max_length == study.text.max_tokens
    same = {name: torch.equal(weight, other.get_parameter(name)) for name, weight in one.named_parameters()}
    assert all(equal for name, equal in same.items() if not name.startswith("pooler"))  # masked LM has no pooler
    assert len(same) > 5
