"""The parser of model_config.json: values, defaults, and errors that name the key."""

import copy
import json

import pytest
from core_support import RELEASES, VARIANTS, config_dict, refused, release_dict

import sa3_core
from sa3_core import SA3Error
from sa3_core import config as configs

SAME = "model.pretransform.config"
ENCODER, DECODER = f"{SAME}.encoder.config", f"{SAME}.decoder.config"
BOTTLENECK = f"{SAME}.bottleneck.config"
DIFFUSION, DIT = "model.diffusion", "model.diffusion.config"
PROMPT, SECONDS = "model.conditioning.configs.0", "model.conditioning.configs.1"


def parent(config, path: str):
    """The container that holds the last key of a dotted path, and that key."""
    *folders, key = (int(part) if part.isdigit() else part for part in path.split("."))
    for folder in folders:
        config = config[folder]
    return config, key


def edited(path: str, value, variant="small"):
    config = config_dict(variant)
    holder, key = parent(config, path)
    holder[key] = value
    return config


def without(path: str, variant="small"):
    config = config_dict(variant)
    holder, key = parent(config, path)
    del holder[key]
    return config


def leaves(value, path=""):
    """Every dotted path below a JSON value, containers included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        here = f"{path}.{key}" if path else str(key)
        yield here
        yield from leaves(child, here)


SECTIONS = ["model", "model.pretransform", SAME, ENCODER, DECODER, BOTTLENECK, "model.conditioning", PROMPT, DIFFUSION, DIT]


# What is read


@pytest.mark.parametrize("name", RELEASES)
def test_every_release_is_read(name):
    parsed = configs.parse(release_dict(name))
    large = name in ("SAME-L",) or name.startswith("medium")
    assert (parsed.sample_rate, parsed.same.samples_per_frame, parsed.same.latent_dim) == (44100, 4096, 256)
    assert (parsed.same.encoder.width, parsed.same.encoder.depth) == ((1536, 12) if large else (768, 6))
    assert parsed.same.decoder.window == (17 if large else None) and parsed.same.decoder.align == (1 if large else 2)
    assert parsed.same.decoder.conv_mapping is not large
    assert parsed.same.decoder.sinusoidal == (8 if large else 0)
    assert parsed.same.decoder.mask_noise == (0.1 if large else 0.01)
    if name.startswith("SAME"):
        assert parsed.dit is None and parsed.conditioning is None
        return
    assert (parsed.dit.width, parsed.dit.depth, parsed.dit.heads) == ((1536, 24, 24) if large else (1024, 20, 16))
    assert parsed.dit.differential is large and parsed.dit.head_dim == 64 and parsed.dit.rotary_dim == 32
    assert parsed.dit.memory_tokens == 64 and parsed.dit.ff_mult == 4
    assert (parsed.conditioning.max_tokens, parsed.conditioning.seconds_max) == (256, 384)
    assert parsed.align == 2
    base = name.endswith("-base")
    assert parsed.is_base is base
    assert (parsed.default_steps, parsed.default_cfg, parsed.default_sampler) == ((50, 7.0, "euler") if base else (8, 1.0, "pingpong"))


def test_the_sampling_shift_sets_the_default_schedule_and_the_training_shift_does_not():
    assert configs.parse(config_dict("medium")).schedule == {"kind": "logsnr"}
    named = configs.parse(config_dict("medium-base")).schedule
    assert named == {"kind": "flux", "min_length": 64, "max_length": 512, "alpha_min": 2.0, "alpha_max": 5.0}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parsing_is_repeatable_and_keeps_its_input(variant):
    config = config_dict(variant)
    before = copy.deepcopy(config)
    assert configs.parse(config) == configs.parse(config)
    assert config == before


def test_defaults_when_absent():
    parsed = configs.parse(without(f"{DECODER}.conv_mapping")).same.decoder
    assert parsed.conv_mapping is False
    assert configs.parse(without(f"{DECODER}.sinusoidal_blocks")).same.decoder.sinusoidal == 0
    assert configs.parse(without(f"{DECODER}.mask_noise")).same.decoder.mask_noise == 0
    assert configs.parse(without(f"{DECODER}.dyt")).same.decoder == configs.parse(config_dict("small")).same.decoder


# What has no effect here

WITHOUT_EFFECT = ["conv_bias", "mapping_style", "use_flash", "use_snake", "use_dilated_conv", "enable_inner_layer_dropout", "checkpointing",
                  "freeze_backbone", "requires_grad", "enable_grad", "iterate_batch", "training"]  # fmt: skip


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_keys_without_effect_change_nothing(key):
    assert configs.parse(edited(f"{ENCODER}.{key}", True)) == configs.parse(config_dict("small"))


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", "none", [], {}])
@pytest.mark.parametrize("where", SECTIONS)
def test_unknown_keys_that_switch_nothing_on_are_harmless(where, value):
    assert configs.parse(edited(f"{where}.future_option", value)) == configs.parse(config_dict("small"))


@pytest.mark.parametrize("value", [True, 1, 0.5, "learned", [1], {"type": "x"}])
@pytest.mark.parametrize("where", SECTIONS)
def test_unknown_keys_that_switch_something_on_are_refused(where, value):
    with refused("future_option", json.dumps(value)):
        configs.parse(edited(f"{where}.future_option", value))


# What is refused

REFUSED = [
    ("model_type", "diffusion_cond"),
    ("model.pretransform.type", "dac"),
    ("model.pretransform.scale", 2.0),
    (f"{SAME}.pretransform.type", "pqmf"),
    (f"{SAME}.soft_clip", True),
    (f"{SAME}.downsampling_ratio", 2048),
    (f"{SAME}.encoder.type", "oobleck"),
    (f"{SAME}.bottleneck.type", "vae"),
    (f"{BOTTLENECK}.noise_augment_dim", 4),
    (f"{BOTTLENECK}.noise_regularize", False),
    (f"{ENCODER}.conformer", True),
    (f"{ENCODER}.layer_scale", True),
    (f"{ENCODER}.differential", False),
    (f"{ENCODER}.dyt", False),
    (f"{ENCODER}.variable_stride", False),
    (f"{ENCODER}.dim_heads", 48),
    (f"{ENCODER}.chunk_size", 40),
    (f"{ENCODER}.strides", [4, 4]),
    (f"{ENCODER}.sliding_window", [1, 2]),
    (f"{ENCODER}.sinusoidal_blocks", [1, 2]),
    (f"{ENCODER}.in_channels", 256),
    (f"{DECODER}.latent_dim", 64),
    ("model.io_channels", 64),
    (f"{PROMPT}.id", "lyrics"),
    (f"{PROMPT}.type", "clap_text"),
    (f"{PROMPT}.config.padding_mode", "zero"),
    (f"{PROMPT}.config.project_out", True),
    (f"{SECONDS}.type", "int"),
    (f"{SECONDS}.config.fourier_features_type", "learned"),
    (f"{SECONDS}.config.max_val", 0),
    (f"{DIFFUSION}.type", "unet"),
    (f"{DIFFUSION}.diffusion_objective", "v"),
    (f"{DIFFUSION}.cross_attention_cond_ids", ["prompt"]),
    (f"{DIFFUSION}.global_cond_ids", []),
    (f"{DIFFUSION}.local_add_cond_ids", ["inpaint_mask"]),
    (f"{DIFFUSION}.prepend_cond_ids", ["prompt"]),
    (f"{DIFFUSION}.input_concat_ids", ["inpaint_mask"]),
    (f"{DIFFUSION}.mask_padding_attention", False),
    (f"{DIFFUSION}.use_effective_length_for_schedule", False),
    (f"{DIT}.patch_size", 2),
    (f"{DIT}.global_cond_type", "prepend"),
    (f"{DIT}.timestep_features_type", "learned"),
    (f"{DIT}.timestep_features_logsnr", True),
    (f"{DIT}.norm_type", "layer_norm"),
    (f"{DIT}.norm_kwargs.force_fp32", False),
    (f"{DIT}.attn_kwargs.qk_norm", "ln"),
    (f"{DIT}.attn_kwargs.feat_scale", True),
    (f"{DIT}.ff_kwargs.no_bias", True),
    (f"{DIT}.conformer", True),
    (f"{DIT}.layer_scale", True),
    (f"{DIT}.prepend_cond_dim", 64),
    (f"{DIT}.input_concat_dim", 33),
    (f"{DIT}.num_heads", 3),
    (f"{DIT}.io_channels", 64),
    (f"{DIT}.local_add_cond_dim", 32),
    (f"{DIT}.cond_token_dim", 96),
]


@pytest.mark.parametrize(("path", "value"), REFUSED, ids=[f"{path.split('.')[-1]}={value}" for path, value in REFUSED])
def test_an_option_that_would_change_the_network_is_refused_by_name(path, value):
    with refused(path.split(".")[-1], json.dumps(value)):
        configs.parse(edited(path, value))


REQUIRED = [
    *("sample_rate", "sample_size", "model", "model.pretransform", SAME, f"{SAME}.encoder", f"{SAME}.bottleneck", f"{SAME}.latent_dim"),
    *(f"{SAME}.downsampling_ratio", f"{ENCODER}.channels", f"{ENCODER}.c_mults", f"{ENCODER}.strides", f"{ENCODER}.transformer_depths"),
    *("model.conditioning", "model.conditioning.cond_dim", f"{PROMPT}.config", DIFFUSION, DIT, f"{DIT}.embed_dim", f"{DIT}.depth"),
    *(f"{DIT}.num_heads", f"{DIT}.num_memory_tokens"),
]


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_key_is_named(path):
    with refused(path.split(".")[-1], "missing"):
        configs.parse(without(path))


@pytest.mark.parametrize("item", [0, 1])
def test_a_missing_conditioner_is_named(item):
    with refused(["prompt", "seconds_total"][item]):
        configs.parse(without(f"model.conditioning.configs.{item}"))


WRONG = ["garbage", {"x": 1}, [], [None], -1, 0, 2.5, True, None, 1e300, float("nan"), float("inf")]


@pytest.mark.parametrize("variant", ["small", "medium-base"])
def test_an_invalid_value_raises_no_other_error(variant):
    """Any key with any value, or a missing key, gives a config or an SA3Error."""
    strange = []
    for path in leaves(config_dict(variant)):
        if path.endswith("sampling_distribution_shift_options") or path.endswith(".subfolder"):
            continue  # below
        for label, config in [("missing", without(path, variant))] + [(repr(value), edited(path, value, variant)) for value in WRONG]:
            try:
                configs.parse(config)
            except SA3Error as error:
                assert str(error).strip()
            except Exception as error:
                strange.append(f"{path} {label}: {error!r}")
    assert strange == []


@pytest.mark.parametrize("value", ["flux", [1], 3])
def test_a_sampling_shift_of_a_wrong_kind_is_refused(value):
    with refused("sampling_distribution_shift_options"):
        configs.parse(edited(f"{DIFFUSION}.sampling_distribution_shift_options", value))


@pytest.mark.parametrize("options", [{"type": "karras"}, {"type": "flux", "alpha": 3}, {"type": "flux", "alpha_min": "x"}])
def test_a_sampling_shift_that_does_not_exist_is_refused(options):
    with refused("sampling_distribution_shift_options"):
        configs.parse(edited(f"{DIFFUSION}.sampling_distribution_shift_options", options))


def test_a_subfolder_of_a_wrong_kind_is_refused():
    with refused("subfolder", 5):
        configs.parse(edited(f"{PROMPT}.config.subfolder", 5))


SIZES = [
    "sample_rate",
    "sample_size",
    f"{SAME}.latent_dim",
    f"{ENCODER}.channels",
    f"{DIT}.embed_dim",
    f"{DIT}.depth",
    f"{DIT}.num_memory_tokens",
]


@pytest.mark.parametrize("value", [2**40, 10**18])
@pytest.mark.parametrize("path", SIZES)
def test_huge_numbers_are_refused(path, value):
    with refused(path.split(".")[-1]):
        configs.parse(edited(path, value))


@pytest.mark.parametrize("path", SIZES)
def test_numbers_beyond_floating_point_are_refused(path):
    with refused(path.split(".")[-1]):
        configs.parse(edited(path, 10**400))


@pytest.mark.parametrize("path", [f"{DIT}.depth", f"{DIT}.embed_dim", f"{ENCODER}.transformer_depths"])
def test_sizes_that_would_never_finish_building_are_refused(path):
    value = 10**9
    with refused(path.split(".")[-1]):
        configs.parse(edited(path, [value] if path.endswith("depths") else value))


def test_heads_too_small_for_the_rotary_embedding_are_refused():
    with refused("num_heads"):
        configs.parse(edited(f"{DIT}.num_heads", 16))  # 8 channels a head, 32 of them turned


@pytest.mark.parametrize("data", [[], "text", 5, None])
def test_a_config_must_be_an_object(data):
    with refused("config", type(data).__name__):
        configs.parse(data)


@pytest.mark.parametrize("content", [b"", b"{", b"not json", b"\xff\xfe{}", b"[" * 100_000])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "model_config.json"
    path.write_bytes(content)
    with refused(path, "json"):
        configs.read(path)


def test_build_refuses_before_it_builds():
    with refused("patch_size", 2):
        sa3_core.build(edited(f"{DIT}.patch_size", 2))
