"""How the grader reaches your code: one function for each thing it asks for.

They are wired to the functions of the reference's names. If you name or split yours differently, change what is called
here, not what is returned. Imports stand inside the functions, so that a mistake in one file costs no other part.
"""


# part 1
def group_advantages(rewards, group_size, scale_by_std=True, eps=1e-6):
    """rewards [B], groups of neighbours -> advantages [B]"""
    import grpo

    return grpo.group_advantages(rewards, group_size, scale_by_std, eps)


# part 2
def aggregate(per_token, mask, aggregation, update_size=None):
    """per_token [B, T], mask [B, T], a name, (rollouts, tokens, length) of the whole update or None -> scalar"""
    import grpo

    return grpo.aggregate(per_token, mask, aggregation, update_size)


def log_importance_ratio(logprobs, old_logprobs, mask):
    """Tensors [B, T] -> log rho [B, T]"""
    import grpo

    return grpo.log_importance_ratio(logprobs, old_logprobs, mask)


def surrogate(log_ratio, advantages, *, clip_low, clip_high, dual_clip):
    """log rho [B, T] and advantages [B, T] -> per-token loss [B, T]"""
    import grpo

    return grpo.surrogate(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def policy_loss(logprobs, old_logprobs, advantages, mask, **settings):
    """Tensors [B, T] (advantages also [B]) -> (scalar loss, {"clip_fraction", "approx_kl", "dual_clip_fraction"})"""
    import grpo

    return grpo.policy_loss(logprobs, old_logprobs, advantages, mask, **settings)


# part 3
def template_ratio_weight(bare_logprobs, templated_logprobs, ratio_min=0.01, ratio_max=10.0, soft=False):
    """Log-probs [B, T] under both contexts -> weights [B, T]"""
    import grpo

    return grpo.template_ratio_weight(bare_logprobs, templated_logprobs, ratio_min, ratio_max, soft)


# part 4
def token_logprobs(policy, contexts, responses):
    """A policy, B contexts and B responses (lists of token ids) -> log-probs [B, T], zeros on the right"""
    import grpo

    return grpo.token_logprobs(policy, contexts, responses)


# part 5
def greedy_cover(dev_scores):
    """K lists of N scores -> indices of the chosen candidates, in the order of choice"""
    import gepa_loop

    return gepa_loop.greedy_cover(dev_scores)


# part 6
def assign_templates(evolution, group_size, rng, cfg=None):
    """A gepa_loop.Evolution, G, a random.Random and an EvolutionConfig -> {question id: list of G templates}"""
    import gepa_loop

    return gepa_loop.assign_templates(evolution, group_size, rng, cfg)


# part 7
def grade_batch(responses, references, questions=None):
    """Responses, reference answers and, if given, the questions (strings) -> a verify.Grade for each"""
    import verify

    return verify.grade_batch(responses, references, questions)


# part 8
def mine_hard(rollouts, cfg):
    """Rollouts, group by group, and a p2o.Config -> ids of the hard questions"""
    import p2o

    return p2o.mine_hard(rollouts, cfg)


def sample_groups(policy, questions, templates, cfg, seed):
    """Questions and {question id: its G templates} -> rewarded rollouts with advantages, group by group"""
    import p2o

    return p2o.sample_groups(policy, questions, templates, cfg, seed)


def train(cfg):
    """A p2o.Config -> the run's summary; the run's folder is written"""
    import p2o

    return p2o.train(cfg)
