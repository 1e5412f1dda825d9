"""Backends that stand before a language model: embeddings, positions, prompts of text and images.

Which to take:

* **Embeddings of tokens**: ``EmbedTokensTensor``. ``IndexSelectTensor`` looks up rows of any table.
* **Images in a prompt**: ``MergePromptTensor`` where a placeholder token marks each place,
  ``MultiModalEmbedsTensor`` where pieces of text and images take turns.
"""
