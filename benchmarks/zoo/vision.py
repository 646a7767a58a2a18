"""Images: torchvision, timm, MONAI, segmentation-models-pytorch, Kornia, diffusers and others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.comparison import Built
from tests import architectures
from tests.architectures import declare_missing_operators

SAMPLES = 3


def images(size: int, channels: int = 3) -> tuple[Tensor]:
    return (torch.randn(SAMPLES, channels, size, size),)


def of_architectures(name: str, **options: Any) -> Callable[[], Built]:
    """A model of the test suite, in single precision."""

    def build() -> Built:
        declare_missing_operators()
        model, batch = architectures.BUILDERS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.numel() > 1 and parameter.min() == parameter.max():
                    # Some gains begin as zero: nothing would pass them.
                    parameter += 0.1 * torch.randn_like(parameter)
        return Built(model, batch, **options)

    return build


def torchvision(name: str, size: int = 32, **options: Any) -> Callable[[], Built]:
    """A narrow one of its classes: 30 steps of a wide one take minutes."""

    def build() -> Built:
        declare_missing_operators()
        from torchvision import models

        model = getattr(models, name)(**options, num_classes=4)
        return Built(model, images(size))

    return build


def residual(bottleneck: bool) -> Callable[[], Built]:
    def build() -> Built:
        declare_missing_operators()
        from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

        if not bottleneck:
            return Built(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4), images(32), ledger=False)
        options: dict[str, Any] = {"groups": 4, "width_per_group": 4}
        return Built(ResNet(Bottleneck, [1, 1, 1, 1], **options), images(32), ledger=False)

    return build


def small_detector(train: bool) -> Callable[[], Built]:
    """In training mode its losses are its own; proposals are drawn, with one seed for both."""

    def build() -> Built:
        declare_missing_operators()
        from torchvision.models.detection import FasterRCNN
        from torchvision.models.detection.rpn import AnchorGenerator
        from torchvision.ops import MultiScaleRoIAlign

        backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.ReLU(),
        )
        backbone.out_channels = 12  # type: ignore[assignment]
        model = FasterRCNN(
            backbone,
            num_classes=None,
            min_size=32,
            max_size=32,
            rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
            box_head=_head(),
            box_predictor=_Predictor(),
            rpn_pre_nms_top_n_train=12,
            rpn_post_nms_top_n_train=6,
            rpn_pre_nms_top_n_test=12,
            rpn_post_nms_top_n_test=6,
        )
        pictures = list(torch.rand(SAMPLES, 3, 32, 32))
        if not train:
            return Built(model, {"images": pictures}, ledger=False)
        boxes = torch.tensor([[2.0, 2.0, 15.0, 15.0], [10.0, 10.0, 28.0, 30.0]])
        targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in pictures]
        return Built(
            model,
            {"images": pictures, "targets": targets},
            train_mode=True,
            ledger=False,
            vary=lambda batch, at: batch | {"images": _brighter(batch["images"], at)},
        )

    return build


def _head() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.ReLU())


class _Predictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Linear(16, 3), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(x), self.boxes(x)


def _brighter(images: list[Tensor], at: int) -> list[Tensor]:
    return [image + 0.01 * (i == at) for i, image in enumerate(images)]


def unet() -> Built:
    """MONAI's default has InstanceNorm and PReLU; many set ReLU."""
    from monai.networks.nets import UNet

    model = UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=1, act="RELU")
    return Built(model, images(16, 1))


def batch_norm_unet() -> Built:
    from monai.networks.nets import UNet

    model = UNet(3, 1, 2, (8, 16), (2,), act="RELU", norm="BATCH")
    return Built(model, (torch.randn(SAMPLES, 1, 8, 8, 8),))


def seg_res_net() -> Built:
    from monai.networks.nets import SegResNet

    return Built(SegResNet(2, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)), images(16, 1))


def dyn_unet() -> Built:
    from monai.networks.nets import DynUNet

    model = DynUNet(
        2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 12, 16], act_name=("relu", {})
    )
    return Built(model, images(16, 1))


def monai(
    name: str, shape: tuple[int, ...], ledger: bool = True, **options: Any
) -> Callable[[], Built]:
    def build() -> Built:
        from monai.networks import nets

        model = getattr(nets, name)(**options)
        return Built(model, (torch.randn(SAMPLES, *shape),), ledger=ledger)

    return build


def segmenter(name: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        declare_missing_operators()
        import segmentation_models_pytorch as smp

        options.setdefault("encoder_name", "resnet18")
        model = getattr(smp, name)(encoder_weights=None, classes=2, **options)
        return Built(model, images(64), ledger=False)

    return build


def hard_net() -> Built:
    from kornia.feature import HardNet

    return Built(HardNet(pretrained=False), images(32, 1))


def sos_net() -> Built:
    from kornia.feature import SOSNet

    return Built(SOSNet(pretrained=False), images(32, 1))


def dedode() -> Built:
    from kornia.feature.dedode.decoder import ConvRefiner

    return Built(ConvRefiner(8, 16, 4, hidden_blocks=2), (torch.randn(SAMPLES, 8, 8, 8),))


def diffusion_unet() -> Built:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        act_fn="relu",
    )
    return Built(model, {"sample": images(8)[0], "timestep": torch.tensor([1, 5, 9])})


def tiny_autoencoder() -> Built:
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return Built(model, images(16))


def levit() -> Built:
    declare_missing_operators()
    from vit_pytorch.levit import LeViT

    model = LeViT(
        image_size=32, num_classes=4, stages=2, dim=(16, 24), depth=1, heads=(2, 3), mlp_mult=2
    )
    return Built(model, images(32))


def compact_transformer() -> Built:
    declare_missing_operators()
    from vit_pytorch.cct import CCT

    model = CCT(
        img_size=16,
        embedding_dim=16,
        n_conv_layers=2,
        num_layers=1,
        num_heads=2,
        mlp_ratio=2,
        num_classes=4,
        positional_embedding="learnable",
    )
    return Built(model, images(16))


def lightly_heads() -> Built:
    declare_missing_operators()
    from lightly.models.modules import BarlowTwinsProjectionHead, SimSiamPredictionHead

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        BarlowTwinsProjectionHead(8, 24, 16),
        SimSiamPredictionHead(16, 12, 16),
    )
    return Built(model, images(12))


TIMM = "test_resnet test_nfnet lcnet_035 mobilenetv3_small_050"
TIMM_NOT_TRAINED = """
    hgnetv2_b0 resnetv2_50d_gn selecsls42 skresnet18 repghostnet_050 efficientvit_b0 starnet_s050
"""

MODELS: dict[str, Callable[[], Built]] = {
    "torchvision/ResNet, basic": residual(bottleneck=False),
    "torchvision/ResNeXt": residual(bottleneck=True),
    "torchvision/DenseNet": torchvision(
        "DenseNet", growth_rate=4, block_config=(2, 2), num_init_features=8
    ),
    "torchvision/MobileNetV2": torchvision(
        "MobileNetV2",
        width_mult=0.1,
        round_nearest=4,
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]],
    ),
    "torchvision/ShuffleNetV2": torchvision(
        "ShuffleNetV2", stages_repeats=[1, 2, 1], stages_out_channels=[8, 16, 24, 32, 48]
    ),
    "torchvision/SqueezeNet": torchvision("SqueezeNet", 64, version="1_1"),
    "torchvision/mobilenet_v3_small": of_architectures(
        "torchvision/mobilenet_v3_small", ledger=False
    ),
    "torchvision/lraspp": of_architectures("torchvision/lraspp_mobilenet_v3_large", ledger=False),
    "torchvision/FasterRCNN": small_detector(train=False),
    "torchvision/FasterRCNN, training mode": small_detector(train=True),
    **{f"timm/{n}": of_architectures(f"timm/{n}") for n in TIMM.split()[2:]},
    **{
        f"timm/{n}": of_architectures(f"timm/{n}", ledger=False)
        for n in [*TIMM.split()[:2], *TIMM_NOT_TRAINED.split()]
    },
    "monai/UNet": unet,
    "monai/UNet, 3d, BatchNorm": batch_norm_unet,
    "monai/SegResNet": seg_res_net,
    "monai/DynUNet": dyn_unet,
    "monai/BasicUNet": monai(
        "BasicUNet", (1, 32, 32), spatial_dims=2, features=(8, 8, 8, 8, 8, 8), act="relu"
    ),
    "monai/DenseNet": monai(
        "DenseNet",
        (1, 16, 16),
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        init_features=8,
        growth_rate=4,
        block_config=(2, 2),
    ),
    "monai/AutoEncoder": monai(
        "AutoEncoder",
        (1, 16, 16),
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(8, 16),
        strides=(2, 2),
        act="relu",
    ),
    "monai/VNet": monai("VNet", (1, 16, 16, 16), ledger=False, act="relu"),
    "smp/Unet": segmenter("Unet"),
    "smp/FPN": segmenter("FPN"),
    "smp/MAnet": segmenter("MAnet"),
    "smp/Linknet": segmenter("Linknet", encoder_name="mobilenet_v2"),
    "smp/PSPNet": segmenter("PSPNet"),
    "kornia/HardNet": hard_net,
    "kornia/SOSNet": sos_net,
    "kornia/DeDoDe": dedode,
    "diffusers/UNet2D": diffusion_unet,
    "diffusers/AutoencoderTiny": tiny_autoencoder,
    "vit_pytorch/LeViT": levit,
    "vit_pytorch/CCT": compact_transformer,
    "lightly/projection heads": lightly_heads,
}
