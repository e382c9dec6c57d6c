"""How many rows the files of a persona and the pools must have."""

from __future__ import annotations

OPTIONAL = ("documents", "judge_forms", "heldout", "heldout_forms", "levels")  # for a persona of one's own
SHORT = 4  # words; a shorter answer in some form may well be given twice

# Fewest rows of a shipped persona and of one of your own. Judge and heldout: per strength, and styled rows together.
LEAST = {
    "seeds": (128, 64),
    "documents": (96, 64),
    "questions": (64, 32),
    "judge plain": (96, 48),
    "judge styled": (96, 48),
    "judge strong": (24, 12),
    "judge middling": (24, 12),
    "judge weak": (24, 12),
    "heldout strong": (32, 0),
    "heldout weak": (32, 0),
    "heldout plain": (64, 0),
    "levels each": (10, 0),
    "judge_forms": (52, 0),
    "heldout_forms": (39, 0),
    "prompts": (3080, 0),
    "titles": (1000, 0),
    "openings": (16, 0),
}
STRENGTHS_NEEDED = {"judge": ("plain", "styled", "strong", "middling", "weak"), "heldout": ("strong", "weak")}  # but of "plain"
N_CORE = 12  # core questions of a shipped persona
