"""What several test files share: slow twins, tokenizers, and texts."""
