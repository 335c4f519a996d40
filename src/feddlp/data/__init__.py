"""From files to batches: data set, partition over clients, prompts, frozen-tower features, batches."""
