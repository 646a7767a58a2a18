"""Real architectures with random weights, by name: torchvision's, timm's and transformers'."""

import functools
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Options = dict[str, Any]
Built = tuple[nn.Module, Any]
"""A model and a batch of two samples: positional arguments, or a dict of keywords."""


@functools.cache
def declare_missing_operators() -> None:
    """Make torchvision importable where its compiled part was built for another kind of torch.

    Must run before anything imports it.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        for library in Path(folder).glob("_C*.so"):
            try:
                torch.ops.load_library(library)
            except OSError:
                continue
            return
    _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # It keeps every box, which is enough for a forward pass to run to its end.
    _LIBRARY.impl("nms", lambda boxes, scores, threshold: scores.argsort(descending=True), "CPU")
    from torchvision.ops import boxes

    boxes._assert_has_ops = lambda: None


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def images(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size)


def tokens(length: int = 7) -> Tensor:
    return torch.randint(4, 60, (2, length))


def torchvision_model(name: str, size: int = 64, **options: Any) -> Built:
    from torchvision import models

    options = {"num_classes": 5} | options
    return models.get_model(name, weights=None, **options), (images(size),)


def detector(name: str, size: int = 64, **options: Any) -> Built:
    options |= {"min_size": size, "max_size": size}
    if "rcnn" in name:
        options |= {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 10}
    model, _ = torchvision_model(name, weights_backbone=None, **options)
    return model, (list(torch.rand(2, 3, size, size)),)


def segmenter(name: str, size: int = 64) -> Built:
    return torchvision_model(name, size, weights_backbone=None)


def video(name: str) -> Built:
    return torchvision_model(name)[0], (torch.randn(2, 3, 4, 32, 32),)


def timm_model(name: str, size: int = 64, **options: Any) -> Built:
    import timm

    return timm.create_model(name, num_classes=5, **options), (images(size),)


def text_model(name: str, **options: Any) -> Built:
    return transformers_model(name, {"input_ids": tokens()}, **SMALL_ENCODER | options)


def seq2seq_model(name: str, **options: Any) -> Built:
    batch = {"input_ids": tokens(), "decoder_input_ids": tokens(5)}
    return transformers_model(name, batch, **SMALL_SEQ2SEQ | options)


def t5_model(name: str, **options: Any) -> Built:
    batch = {"input_ids": tokens(), "decoder_input_ids": tokens(5)}
    return transformers_model(name, batch, **SMALL_T5 | options)


def vision_model(name: str, **options: Any) -> Built:
    sizes = {"image_size": 32, "patch_size": 8} | SMALL_ENCODER
    del sizes["vocab_size"], sizes["max_position_embeddings"]
    return transformers_model(name, {"pixel_values": images(32)}, **sizes | options)


def speech_model(name: str, **options: Any) -> Built:
    convolutions = {
        "conv_dim": (16, 16),
        "conv_stride": (5, 4),
        "conv_kernel": (10, 8),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    batch = {"input_values": torch.randn(2, 800)}
    return transformers_model(name, batch, **SMALL_ENCODER | convolutions | options)


def transformers_model(name: str, batch: dict[str, Any], **options: Any) -> Built:
    import transformers

    cls = getattr(transformers, name)
    return cls(cls.config_class(**options)), batch


SMALL_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "relu",
    "vocab_size": 64,
    "max_position_embeddings": 32,
}
SMALL_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "activation_function": "relu",
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
}
SMALL_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": 64,
    "dense_act_fn": "relu",
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
SMALL_GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "vocab_size": 64,
}

PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "hidden_act": "relu"}
HEADS = {"num_attention_heads": [1, 2, 2, 4]}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
SMALL_DETR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "activation_function": "relu",
    "use_timm_backbone": False,
    "backbone": None,
    "num_queries": 5,
}


def pyramid_model(name: str, **options: Any) -> Built:
    return transformers_model(name, {"pixel_values": images(64)}, **options)


def detr_model(name: str) -> Built:
    import transformers

    stages = ["stage2", "stage3", "stage4"] if name.startswith("Deformable") else ["stage4"]
    backbone = transformers.ResNetConfig(**PYRAMID, embedding_size=8, out_features=stages)
    return pyramid_model(name, **SMALL_DETR, backbone_config=backbone)


def hearing_model(name: str, batch: Tensor, **options: Any) -> Built:
    inputs = {"input_features": batch, "decoder_input_ids": tokens(5)}
    return transformers_model(name, inputs, **SMALL_SEQ2SEQ | options)


def patch_model(**options: Any) -> Built:
    sizes = {"context_length": 32, "num_input_channels": 3, "patch_length": 8, "patch_stride": 8}
    sizes |= {"d_model": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    batch = {"past_values": torch.randn(2, 32, 3)}
    options |= {"activation_function": "relu"}
    return transformers_model("PatchTSTModel", batch, **sizes, **options)


def series_model(name: str) -> Built:
    batch = {
        "past_values": torch.randn(2, 20),
        "past_time_features": torch.randn(2, 20, 2),
        "past_observed_mask": torch.ones(2, 20),
        "future_values": torch.randn(2, 4),
        "future_time_features": torch.randn(2, 4, 2),
    }
    sizes = {"prediction_length": 4, "context_length": 12, "num_time_features": 2}
    sizes |= {key: SMALL_DETR[key] for key in list(SMALL_DETR)[:8]}
    return transformers_model(name, batch, lags_sequence=[1, 2, 8], **sizes)


# name -> size of the images
TORCHVISION = {
    "resnet18": 32,
    "resnet50": 32,
    "densenet121": 32,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "googlenet": 32,
    "inception_v3": 75,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mobilenet_v3_large": 32,
    "shufflenet_v2_x0_5": 32,
    "shufflenet_v2_x1_0": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
}
SEGMENTERS = "fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large"
VIDEO = "r3d_18 r2plus1d_18"
DETECTORS = "fasterrcnn_mobilenet_v3_large_320_fpn fcos_resnet50_fpn retinanet_resnet50_fpn"
TIMM = """
    dla34 dla60_res2net dpn48b ecaresnet26t efficientnet_lite0 efficientvit_b0 efficientvit_m0
    ese_vovnet19b_slim fbnetc_100 ghostnet_050 hgnetv2_b0 hrnet_w18_small lambda_resnet26t
    lcnet_035 legacy_seresnet18 legacy_xception mixnet_s mnasnet_small mobilenetv2_035
    mobilenetv3_small_050 mobilenetv4_conv_small nf_resnet26 regnetx_002 regnety_002
    repghostnet_050 res2net50d resnest14d resnet10t resnet18d resnetv2_18 resnetv2_50d_gn
    rexnet_100 selecsls42 seresnet18 shvit_s1 skresnet18 spnasnet_100 starnet_s050
    swiftformer_xs test_resnet test_nfnet tf_mobilenetv3_small_minimal_100
"""
TEXT: dict[str, Options] = {
    "BertModel": {},
    "AlbertModel": {},
    "MobileBertModel": {},
    "DebertaModel": {},
    "ConvBertModel": {},
    "FNetModel": {},
    "DistilBertModel": {"dim": 32, "n_layers": 2, "n_heads": 4, "activation": "relu"},
    "LlamaModel": {},
    "OPTModel": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "SqueezeBertModel": {"embedding_size": 32},
    "GPT2Model": SMALL_GPT2 | {"activation_function": "relu"},
    "GPT2Model/relu2": SMALL_GPT2 | {"activation_function": "relu2"},
    "CTRLModel": SMALL_GPT2 | {"dff": 48},
    "XLMModel": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "gelu_activation": False},
}
SEQ2SEQ = "BartModel MBartModel PegasusModel MarianModel M2M100Model NllbMoeModel FSMTModel"
T5 = "T5Model MT5Model UMT5Model LongT5Model SwitchTransformersModel"
VISION = "ViTModel BeitModel MobileViTModel Data2VecVisionModel"
SPEECH = "Wav2Vec2Model HubertModel Wav2Vec2ConformerModel"
PYRAMIDS: dict[str, Options] = {
    "RegNetModel": PYRAMID | {"groups_width": 8},
    "ResNetModel": PYRAMID | {"embedding_size": 8},
    "SegformerForSemanticSegmentation": PYRAMID | HEADS | {"decoder_hidden_size": 16},
    "GLPNForDepthEstimation": PYRAMID | HEADS | {"decoder_hidden_size": 16},
    "PvtV2Model": PYRAMID | HEADS | {"image_size": 64},
    "ConvNextModel": PYRAMID | {"num_stages": 4},
    "SwinModel": WINDOWS | {"image_size": 64, "hidden_act": "relu"},
    "Swin2SRModel": WINDOWS | {"image_size": 64, "hidden_act": "relu"},
    "SuperPointForKeypointDetection": {
        "encoder_hidden_sizes": [8, 8, 16, 16],
        "decoder_hidden_size": 16,
        "descriptor_decoder_dim": 16,
    },
}
DETR = "DetrForObjectDetection ConditionalDetrForObjectDetection DeformableDetrForObjectDetection"

BUILDERS: dict[str, Callable[[], Built]] = {
    **{
        f"torchvision/{name}": partial(torchvision_model, name, TORCHVISION[name])
        for name in TORCHVISION
    },
    **{f"torchvision/{name}": partial(segmenter, name) for name in SEGMENTERS.split()},
    **{f"torchvision/{name}": partial(video, name) for name in VIDEO.split()},
    **{f"torchvision/{name}": partial(detector, name) for name in DETECTORS.split()},
    **{f"timm/{name}": partial(timm_model, name) for name in TIMM.split()},
    **{
        f"transformers/{name}": partial(text_model, name.partition("/")[0], **options)
        for name, options in TEXT.items()
    },
    **{f"transformers/{name}": partial(seq2seq_model, name) for name in SEQ2SEQ.split()},
    **{f"transformers/{name}": partial(t5_model, name) for name in T5.split()},
    **{f"transformers/{name}": partial(vision_model, name) for name in VISION.split()},
    **{f"transformers/{name}": partial(speech_model, name) for name in SPEECH.split()},
    **{
        f"transformers/{name}": partial(pyramid_model, name, **options)
        for name, options in PYRAMIDS.items()
    },
    **{f"transformers/{name}": partial(detr_model, name) for name in DETR.split()},
    "transformers/Speech2TextModel": lambda: hearing_model(
        "Speech2TextModel", torch.randn(2, 24, 8), input_feat_per_channel=8, conv_channels=16
    ),
    "transformers/WhisperModel": lambda: hearing_model(
        "WhisperModel",
        torch.randn(2, 8, 24),
        num_mel_bins=8,
        max_source_positions=12,
        max_target_positions=12,
    ),
    "transformers/PatchTSTModel": patch_model,
    "transformers/PatchTSTModel/channels": partial(
        patch_model, norm_type="batchnorm", channel_attention=True
    ),
    "transformers/TimeSeriesTransformerModel": partial(series_model, "TimeSeriesTransformerModel"),
    "transformers/InformerModel": partial(series_model, "InformerModel"),
}


def build(name: str) -> Built:
    """A model in eval mode and in double precision, and a batch of it."""
    model, batch = BUILDERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                # Norms begin as the identity, some as zero: nothing would pass them.
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval().double(), in_double(batch)


def in_double(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: in_double(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(in_double(value) for value in batch)
    return batch.double() if batch.is_floating_point() else batch
