"""The tree of all settings."""

from __future__ import annotations

from braingen.config.drawing import DecodeConfig, FinetuneConfig, LoraConfig, RefinerConfig, RouterConfig, SamplerConfig
from braingen.config.judging import BottleneckConfig, CompareConfig, CurveConfig, ExplainConfig, ScoresConfig, StudyConfig
from braingen.config.reading import BackboneConfig, EncoderConfig, LossConfig, OptimConfig, PriorConfig, PublishedConfig
from braingen.config.run_and_data import CacheConfig, DataConfig, DoctorConfig, PrepareConfig, RunConfig, SimulationConfig
from braingen.config.values import Section


class Config(Section):
    """All settings."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    simulation: SimulationConfig = SimulationConfig()
    prepare: PrepareConfig = PrepareConfig()
    cache: CacheConfig = CacheConfig()
    doctor: DoctorConfig = DoctorConfig()
    backbone: BackboneConfig = BackboneConfig()
    encoder: EncoderConfig = EncoderConfig()
    prior: PriorConfig = PriorConfig()
    loss_image: LossConfig = LossConfig()
    loss_text: LossConfig = LossConfig(clip_scale=0.9, prior_scale=0.1, prior_clip_scale=0.1, temp_coeff=10.0, mixup_pct=0.0)
    optim: OptimConfig = OptimConfig()
    router: RouterConfig = RouterConfig()
    lora: LoraConfig = LoraConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    sampler: SamplerConfig = SamplerConfig()
    refiner: RefinerConfig = RefinerConfig()
    decode: DecodeConfig = DecodeConfig()
    scores: ScoresConfig = ScoresConfig()
    compare: CompareConfig = CompareConfig()
    curve: CurveConfig = CurveConfig()
    bottleneck: BottleneckConfig = BottleneckConfig()
    study: StudyConfig = StudyConfig()
    explain: ExplainConfig = ExplainConfig()
    published: PublishedConfig = PublishedConfig()
