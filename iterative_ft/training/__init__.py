"""Policies learn here: SFT, SDF and DPO on TRL's trainers with LoRA, one function each in a literal dict."""
