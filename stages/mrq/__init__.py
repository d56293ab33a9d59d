"""MR.Q: model-based representations for Q-learning, online and offline."""
