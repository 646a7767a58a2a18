"""Text: transformers, PEFT, x-transformers, sentence-transformers, OpenCLIP, SAELens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.comparison import Built
from benchmarks.zoo.vision import of_architectures
from tests import architectures
from tests.architectures import declare_missing_operators

SAMPLES = 3


def tokens(length: int = 7) -> Tensor:
    return torch.randint(4, 60, (SAMPLES, length))


def transformer(name: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        declare_missing_operators()
        sizes = architectures.SMALL_ENCODER | options
        model, batch = architectures.transformers_model(name, {"input_ids": tokens()}, **sizes)
        return Built(model, batch | {"use_cache": False})

    return build


def small_opt() -> tuple[nn.Module, dict[str, Any]]:
    declare_missing_operators()
    sizes = architectures.SMALL_ENCODER | {"ffn_dim": 48, "word_embed_proj_dim": 32}
    return architectures.transformers_model("OPTForCausalLM", {"input_ids": tokens()}, **sizes)


def opt() -> Built:
    model, batch = small_opt()
    return Built(model, batch | {"use_cache": False})


def adapted_opt() -> Built:
    """LoRA on the layer before the ReLU."""
    model, batch = small_opt()
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["fc1", "q_proj"], lora_dropout=0.0)
    adapted = get_peft_model(model, config)
    return Built(adapted, batch | {"use_cache": False}, learning_rate=0.2)


def scaled_opt() -> Built:
    """IA3 multiplies what the ReLU gives, and what goes into a layer."""
    model, batch = small_opt()
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["fc1", "v_proj"], feedforward_modules=[])
    return Built(get_peft_model(model, config), batch | {"use_cache": False})


def x_transformer(**options: Any) -> Callable[[], Built]:
    def build() -> Built:
        from x_transformers import Encoder, TransformerWrapper

        layers = Encoder(dim=16, depth=2, heads=2, attn_dim_head=8, ff_mult=2, **options)
        model = TransformerWrapper(num_tokens=64, max_seq_len=16, attn_layers=layers)
        return Built(model, (tokens(),))

    return build


def sentence_encoder() -> Built:
    """Dense layers after pooled word vectors."""
    declare_missing_operators()
    from sentence_transformers.models import Dense, Pooling

    class Model(nn.Module):
        """What SentenceTransformer does, with words of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(64, 16)
            self.pool = Pooling(16)
            self.dense = Dense(16, 24, activation_function=nn.ReLU())

        def forward(self, input_ids: Tensor) -> Tensor:
            words = self.words(input_ids)
            mask = torch.ones_like(input_ids)
            features = {"token_embeddings": words, "attention_mask": mask}
            return self.dense(self.pool(features))["sentence_embedding"]

    return Built(Model(), {"input_ids": tokens()})


def clip(tower: str) -> Callable[[], Built]:
    def build() -> Built:
        declare_missing_operators()
        from open_clip.modified_resnet import ModifiedResNet
        from open_clip.transformer import TextTransformer

        if tower == "text":
            model = TextTransformer(
                context_length=8,
                vocab_size=64,
                width=16,
                heads=2,
                layers=2,
                output_dim=8,
                act_layer=nn.ReLU,
            )
            return Built(model, (tokens(8),))
        model = ModifiedResNet([1, 1, 1, 1], 8, 2, image_size=32, width=8)
        return Built(model, (torch.randn(SAMPLES, 3, 32, 32),))

    return build


def sae(kind: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        declare_missing_operators()
        import sae_lens

        config = getattr(sae_lens, f"{kind}SAEConfig")(d_in=16, d_sae=48, **options)
        model = getattr(sae_lens, f"{kind}SAE")(config)
        return Built(model, (torch.randn(12, 16),))

    return build


def training_sae() -> Built:
    """As SAELens trains it: not by forward, and its loss is its own."""
    declare_missing_operators()
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    config = sae_lens.StandardTrainingSAEConfig(d_in=16, d_sae=48, l1_coefficient=1.0)
    sae = sae_lens.StandardTrainingSAE(config)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sae = sae

        def forward(self, x: Tensor) -> Tensor:
            step = TrainStepInput(
                sae_in=x,
                coefficients={"l1": 1.0},
                dead_neuron_mask=None,
                n_training_steps=0,
                is_logging_step=False,
            )
            return self.sae.training_forward_pass(step).loss

    return Built(Model(), (torch.randn(12, 16),), loss=lambda loss: loss)


TRANSFORMERS = """
    BertModel T5Model UMT5Model GPT2Model/relu2 BartModel NllbMoeModel SqueezeBertModel XLMModel
    Wav2Vec2Model SegformerForSemanticSegmentation SuperPointForKeypointDetection
    TimeSeriesTransformerModel PatchTSTModel DetrForObjectDetection
"""
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}

MODELS: dict[str, Callable[[], Built]] = {
    "transformers/OPT": opt,
    **{f"transformers/{n}": of_architectures(f"transformers/{n}") for n in TRANSFORMERS.split()},
    "transformers/Nemotron, relu2": transformer(
        "NemotronModel", hidden_act="relu2", num_key_value_heads=2, head_dim=8
    ),
    "transformers/Mixtral, relu": transformer("MixtralModel", **EXPERTS),
    "transformers/PhiMoE, relu": transformer("PhimoeModel", **EXPERTS),
    "transformers/Switch": of_architectures("transformers/SwitchTransformersModel"),
    "peft/LoRA on OPT": adapted_opt,
    "peft/IA3 on OPT": scaled_opt,
    "x_transformers/relu_squared": x_transformer(ff_relu_squared=True),
    "x_transformers/ReGLU": x_transformer(
        ff_glu=True, ff_custom_activation=nn.ReLU(), ff_no_bias=True
    ),
    "sentence_transformers/Dense": sentence_encoder,
    "open_clip/text tower": clip("text"),
    "open_clip/ResNet tower": clip("image"),
    "sae_lens/standard": sae("Standard"),
    "sae_lens/gated": sae("Gated"),
    "sae_lens/top-k": sae("TopK", k=4),
    "sae_lens/jumprelu": sae("JumpReLU"),
    "sae_lens/training": training_sae,
}
