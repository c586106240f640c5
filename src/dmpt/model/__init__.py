"""The method: frozen backbone, prompts, bind, heads (paper section 3)."""
