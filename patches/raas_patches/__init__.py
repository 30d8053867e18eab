"""Every place where SGLang's behaviour is changed: one file per SGLang module."""
