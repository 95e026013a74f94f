"""The tree of all settings."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationInfo, model_validator

from braingen.config.effect import refuse_idle
from braingen.config.encoders import BrainMoEMultiConfig, EncoderConfig
from braingen.config.encoding import EncodingConfig
from braingen.config.evaluation import (
    AdaptationCurveConfig,
    BottleneckConfig,
    CompareConfig,
    CrossValidationConfig,
    EvaluationConfig,
    HumanEvalConfig,
    InterpretConfig,
)
from braingen.config.explore import ExploreConfig
from braingen.config.generation import (
    DecodeConfig,
    FinetuneConfig,
    GenerationConfig,
    LoraConfig,
    QuickstartConfig,
    RefinementConfig,
    RouterConfig,
)
from braingen.config.low_level import LowLevelConfig
from braingen.config.run_and_data import (
    DataConfig,
    DoctorConfig,
    PrecomputeConfig,
    PrepareConfig,
    RunConfig,
    SimulationConfig,
)
from braingen.config.sweep import SweepConfig
from braingen.config.training import (
    BackboneConfig,
    LossConfig,
    PriorConfig,
    PublishedConfig,
    TrainingConfig,
)
from braingen.config.values import Section


class Config(Section):
    """All settings."""

    run: RunConfig = RunConfig()
    quickstart: QuickstartConfig = QuickstartConfig()
    data: DataConfig = DataConfig()
    simulation: SimulationConfig = SimulationConfig()
    prepare: PrepareConfig = PrepareConfig()
    precompute: PrecomputeConfig = PrecomputeConfig()
    doctor: DoctorConfig = DoctorConfig()
    backbone: BackboneConfig = BackboneConfig()
    encoder: EncoderConfig = BrainMoEMultiConfig()
    prior: PriorConfig = PriorConfig()
    loss_image: LossConfig = LossConfig()
    loss_text: LossConfig = LossConfig(
        clip_scale=0.9, prior_scale=0.1, prior_clip_scale=0.1, temp_coeff=10.0, mixup_pct=0.0
    )
    encoding: EncodingConfig = EncodingConfig()
    training: TrainingConfig = TrainingConfig()
    low_level: LowLevelConfig = LowLevelConfig()
    router: RouterConfig = RouterConfig()
    lora: LoraConfig = LoraConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    generation: GenerationConfig = GenerationConfig()
    refinement: RefinementConfig = RefinementConfig()
    decode: DecodeConfig = DecodeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compare: CompareConfig = CompareConfig()
    adaptation_curve: AdaptationCurveConfig = AdaptationCurveConfig()
    bottleneck: BottleneckConfig = BottleneckConfig()
    cross_validation: CrossValidationConfig = CrossValidationConfig()
    sweep: SweepConfig = SweepConfig()
    human_eval: HumanEvalConfig = HumanEvalConfig()
    interpret: InterpretConfig = InterpretConfig()
    explore: ExploreConfig = ExploreConfig()
    published: PublishedConfig = PublishedConfig()

    @model_validator(mode="after")
    def refuse_settings_without_effect(self, info: ValidationInfo) -> Config:
        """Whatever was given and differs from its default must be read by something; the context's
        `tolerated` settings excepted.
        """
        tolerated = (info.context or {}).get("tolerated", ())
        paths = [
            f"{section}.{field}"
            for section in type(self).model_fields
            for field in getattr(self, section).model_fields_set
            if f"{section}.{field}" not in tolerated
            and getattr(getattr(self, section), field) != default_of(self, section, field)
        ]
        refuse_idle(self, sorted(paths))
        return self


def default_of(config: Config, section: str, field: str) -> Any:
    """The default of a setting in the variant that is chosen."""
    part, usual = getattr(config, section), Config.model_fields[section].default
    return (
        getattr(usual, field)
        if type(part) is type(usual)
        else type(part).model_fields[field].default
    )
