"""The three stages of SimCLRv2: contrastive pretraining, fine-tuning on few labels, distillation."""
