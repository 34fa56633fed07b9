def whole_response(logprobs, old_logprobs, mask):
    """GSPO: one ratio for a response, the geometric mean of its tokens' ratios."""
    means = ((logprobs - old_logprobs) * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return means.clamp(-20, 20).expand_as(logprobs)
