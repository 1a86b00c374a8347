"""`ldadam finetune`: ready models trained further, to classify texts or to answer prompts."""
