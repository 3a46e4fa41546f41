"""The loop of all trainings, distillation and regularisation."""
