"""oodflow: anomaly detection with deep generative models, from training to report.

The method is that of Schirrmeister, Zhou, Ball and Zhang, "Understanding Anomaly Detection with
Deep Invertible Networks through Hierarchies of Distributions and Features", NeurIPS 2020,
arXiv:2006.10848. Docstrings cite its equations, and sections of its supplement such as S4.3.
"Authors' code" is the implementation that its authors published.
"""
