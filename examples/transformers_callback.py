"""Hugging Face Transformers: a callback records the training of a small OPT.

pip install "reludiag[transformers]" && python examples/transformers_callback.py
"""

import torch
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainingArguments, set_seed

from reludiag.integrations.transformers import ReludiagCallback


def main() -> None:
    set_seed(0)
    config = OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=32,
    )  # fmt: skip
    texts = torch.randint(4, 64, (256, 16))
    callback = ReludiagCallback(path="transformers.reludiag", every=10)
    trainer = Trainer(
        OPTForCausalLM(config),
        TrainingArguments(
            "trained", max_steps=40, learning_rate=0.05, per_device_train_batch_size=16,
            gradient_accumulation_steps=2, report_to=[], save_strategy="no", use_cpu=True,
        ),
        train_dataset=[{"input_ids": text, "labels": text} for text in texts],
        callbacks=[callback],
    )  # fmt: skip
    with callback:  # completes the recording also after an exception
        trainer.train()
    print(callback.monitor.diagnose())


if __name__ == "__main__":
    main()
