"""Every setting, its text form, and what may not stand together."""
