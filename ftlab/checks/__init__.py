"""Exercises: passed, or a hint. One file per lesson; `hints.toml` holds the words."""

from ftlab.checks.capstone import (
    check_gain_interval,
    check_leaked_questions,
    check_pass_at_k,
    check_preference_rows,
)
from ftlab.checks.clinic import check_ends_with, check_leaked_share, check_lost_share, check_next_logits
from ftlab.checks.course_data import check_labels, check_next_token_loss, check_pad_right, check_padding_share
from ftlab.checks.decision import (
    check_calibrated_label,
    check_cheapest_way,
    check_label_probabilities,
    check_request_cost,
)
from ftlab.checks.first_finetune import (
    check_answer_loss,
    check_gradient_step,
    check_supervised_tokens,
    check_trainable_share,
)
from ftlab.checks.forgetting import check_mean_kl, check_p_value, check_replay_count, check_walk_back
from ftlab.checks.inference import check_cache_bytes, check_cached_attention, check_temperature, check_top_p
from ftlab.checks.lora import check_lora_forward, check_lora_freeze, check_lora_parameters, check_lora_scale
from ftlab.checks.merge import check_merged_weight, check_mixed_weight, check_q8_bytes, check_q8_roundtrip
from ftlab.checks.methods import check_dora_weight, check_front, check_full_bytes, check_ia3_forward
from ftlab.checks.mixture import (
    check_active_parameters,
    check_dropped_tokens,
    check_router_weights,
    check_switch_loss,
)
from ftlab.checks.policy_gradient import (
    check_clipped_pull,
    check_grpo_advantages,
    check_kl_estimate,
    check_rloo_advantage,
)
from ftlab.checks.preferences import check_answer_logp, check_dpo_loss, check_loss_with_sft, check_reference_free
from ftlab.checks.qlora import check_block_scales, check_nearest_level, check_nf4_bytes, check_restored_weights
from ftlab.checks.reward_model import (
    check_last_token_rewards,
    check_preference_probability,
    check_reward_loss,
    check_reward_margin,
)
from ftlab.checks.scale_out import (
    check_bytes_per_process,
    check_mlp_partial_sums,
    check_reduce_scatter,
    check_sampler_rows,
    check_shard,
)
from ftlab.checks.training import (
    check_accumulated_loss,
    check_clipped_gradient,
    check_linear_rate,
    check_state_bytes,
)
from ftlab.checks.trying import Verdict

__all__ = [
    "Verdict",
    "check_accumulated_loss",
    "check_active_parameters",
    "check_answer_logp",
    "check_answer_loss",
    "check_block_scales",
    "check_bytes_per_process",
    "check_cache_bytes",
    "check_cached_attention",
    "check_calibrated_label",
    "check_cheapest_way",
    "check_clipped_gradient",
    "check_clipped_pull",
    "check_dora_weight",
    "check_dpo_loss",
    "check_dropped_tokens",
    "check_ends_with",
    "check_front",
    "check_full_bytes",
    "check_gain_interval",
    "check_gradient_step",
    "check_grpo_advantages",
    "check_ia3_forward",
    "check_kl_estimate",
    "check_label_probabilities",
    "check_labels",
    "check_last_token_rewards",
    "check_leaked_questions",
    "check_leaked_share",
    "check_linear_rate",
    "check_lora_forward",
    "check_lora_freeze",
    "check_lora_parameters",
    "check_lora_scale",
    "check_loss_with_sft",
    "check_lost_share",
    "check_mean_kl",
    "check_merged_weight",
    "check_mixed_weight",
    "check_mlp_partial_sums",
    "check_nearest_level",
    "check_next_logits",
    "check_next_token_loss",
    "check_nf4_bytes",
    "check_p_value",
    "check_pad_right",
    "check_padding_share",
    "check_pass_at_k",
    "check_preference_probability",
    "check_preference_rows",
    "check_q8_bytes",
    "check_q8_roundtrip",
    "check_reduce_scatter",
    "check_reference_free",
    "check_replay_count",
    "check_request_cost",
    "check_restored_weights",
    "check_reward_loss",
    "check_reward_margin",
    "check_rloo_advantage",
    "check_router_weights",
    "check_sampler_rows",
    "check_shard",
    "check_state_bytes",
    "check_supervised_tokens",
    "check_switch_loss",
    "check_temperature",
    "check_top_p",
    "check_trainable_share",
    "check_walk_back",
]
