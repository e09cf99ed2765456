"""The tiny `origin` encoders of the embedded catalogue, made from its generic corpora alone."""

from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from icssl_lib.config import PretrainConfig, Study
from icssl_lib.encoders import save_pretrained, take, tokenize
from icssl_lib.fast.unpad import fast
from icssl_lib.files import folder_written_whole
from icssl_lib.sources import synthetic

SEED, LEARNING_RATE, BATCH = 0, 1e-3, 64


def train_tokenizer(titles: list[str], vocab_size: int):
    """A WordPiece tokenizer of ``titles``, the same one in every process: a BertTokenizerFast.

    The trainer numbers the pieces ##a, ##b, ... in the order of a hash map, which differs from process to process, and
    breaks ties by these numbers; so they are numbered beforehand, as if they were special tokens.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trainer = BertWordPieceTokenizer()
    letters = sorted({letter for title in titles for letter in trainer.normalize(title) if not letter.isspace()})
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"##{letter}" for letter in letters)]
    trainer.train_from_iterator(titles, vocab_size=vocab_size, special_tokens=first, show_progress=False)
    wordpiece = BertWordPieceTokenizer(vocab=trainer.get_vocab())  # where only the five are special
    return BertTokenizerFast(tokenizer_object=wordpiece._tokenizer)


def text_shape(config: PretrainConfig, vocab_size: int, **special: int):
    """The tiny text encoder, a ModernBertConfig. special: pad_token_id, cls_token_id, sep_token_id.

    ModernBERT (Warner et al., 2024) because transformers' own classifier for it can pool by the mean. BERT's reads
    the first token, which masked language modelling alone leaves untrained (BERT's next-sentence task trained it).
    """
    from transformers import ModernBertConfig

    return ModernBertConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=2 * config.hidden_size,  # gated: as wide as BERT's 4
        max_position_embeddings=128,
        global_attn_every_n_layers=1,
        embedding_dropout=0.1,  # its defaults are 0; SimCSE lives on dropout
        attention_dropout=0.1,
        mlp_dropout=0.1,
        classifier_pooling="mean",
        **special,
        bos_token_id=None,
        eos_token_id=None,
    )


VISION_MODEL = "vit_tiny_patch16_224"


def vision_shape(config: PretrainConfig, image_size: int) -> dict[str, int]:
    """The tiny vision encoder: what VISION_MODEL is given beside its name."""
    size = config.vision_size
    return {"embed_dim": size, "depth": config.vision_layers, "num_heads": size // 32, "img_size": image_size}


def pretrain_text(study: Study, folder: Path, progress: bool = True) -> pd.DataFrame:
    """A tiny ModernBERT by masked language modelling (Devlin et al., 2019: 15% of the tokens) on generic titles.

    Writes a Hugging Face folder. Returns: step, loss.
    """
    from transformers import DataCollatorForLanguageModeling, ModernBertForMaskedLM

    config = study.pretrain
    set_seed(SEED)
    torch.set_num_threads(study.runtime.threads)
    titles = synthetic.generic_titles(config.titles, SEED)
    tokenizer = train_tokenizer(titles, config.vocab_size)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    model = ModernBertForMaskedLM(text_shape(config, len(tokenizer), **special))
    tokens = tokenize(tokenizer, titles, study.text.max_tokens)
    mask = DataCollatorForLanguageModeling(tokenizer)
    optimizer, schedule, steps = _optimizer(model, config.text_epochs, len(titles))
    history = []
    with tqdm(total=steps, desc="masked LM", disable=not progress) as bar, fast(model.model):
        for _ in range(config.text_epochs):
            for index in torch.randperm(len(titles)).split(BATCH):
                batch = take(tokens, index, model.device)
                masked, labels = mask.torch_mask_tokens(batch["input_ids"].clone())
                # Padding is no word: it is neither hidden nor guessed.
                real = batch["attention_mask"].bool()
                batch["input_ids"] = torch.where(real, masked, batch["input_ids"])
                chosen = real & (labels != -100)
                hidden = model.model(**batch).last_hidden_state[chosen]  # only hidden words need their 3,000 logits
                loss = cross_entropy(model.decoder(model.head(hidden)), labels[chosen])
                _step(loss, optimizer, schedule)
                history.append(loss.item())
                bar.update()
    tokenizer.model_max_length = study.text.max_tokens
    save_pretrained(model.model, tokenizer, folder)
    return pd.DataFrame({"step": range(len(history)), "loss": history})


def pretrain_vision(study: Study, folder: Path, progress: bool = True) -> pd.DataFrame:
    """A tiny ViT by supervised classification of generic pictures, saved without its classifier (timm's folder).

    Returns: step, loss.
    """
    import timm
    from timm.models import save_for_hf

    config = study.pretrain
    set_seed(SEED)
    torch.set_num_threads(study.runtime.threads)
    pictures, labels = synthetic.generic_pictures(config.pictures, SEED, study.vision.image_size)
    shape = vision_shape(config, study.vision.image_size)
    model = timm.create_model(VISION_MODEL, num_classes=int(labels.max()) + 1, **shape)
    optimizer, schedule, steps = _optimizer(model, config.vision_epochs, len(pictures))
    history = []
    with tqdm(total=steps, desc="ViT", disable=not progress) as bar, fast(model):
        for _ in range(config.vision_epochs):
            for index in torch.randperm(len(pictures)).split(BATCH):
                pixels = torch.from_numpy(pictures[index.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
                loss = cross_entropy(model(pixels), torch.from_numpy(labels)[index])
                _step(loss, optimizer, schedule)
                history.append(loss.item())
                bar.update()
    model.reset_classifier(0)
    with folder_written_whole(folder) as part:
        save_for_hf(model, part, model_config={"num_classes": 0}, model_args=shape, safe_serialization=True)
    return pd.DataFrame({"step": range(len(history)), "loss": history})


def _optimizer(model: torch.nn.Module, epochs: int, n: int):
    from transformers import get_scheduler

    steps = epochs * -(-n // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    return optimizer, get_scheduler("linear", optimizer, round(0.06 * steps), steps), steps


def _step(loss: torch.Tensor, optimizer: torch.optim.Optimizer, schedule) -> None:
    loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def loadable(study: Study, folder: Path) -> Study:
    """The study with stand-ins of the right size for models that are not here yet, made up in ``folder``: those that it
    makes itself, and BERT-base. Enough to time a step."""
    from transformers import BertConfig, BertModel

    text, vision = study.text.model, study.vision.model
    if "pretrained" in (text, vision):
        few = {"titles": 2000, "pictures": 64, "text_epochs": 1, "vision_epochs": 1}
        small = study.model_copy(update={"pretrain": study.pretrain.model_copy(update=few)})
        pretrain_text(small, folder / "text", progress=False)
        pretrain_vision(small, folder / "vision", progress=False)
    if text == "bert-base-uncased":
        tokenizer = train_tokenizer(synthetic.generic_titles(5000, 0), BertConfig().vocab_size)
        save_pretrained(BertModel(BertConfig()), tokenizer, folder / "text")
    made = {"model": str(folder / "text")} if text in ("pretrained", "bert-base-uncased") else {}
    tower = {"model": f"local-dir:{folder / 'vision'}"} if vision == "pretrained" else {"random": ":" not in vision}
    models = {"text": study.text.model_copy(update=made), "vision": study.vision.model_copy(update=tower)}
    return study.model_copy(update=models)
