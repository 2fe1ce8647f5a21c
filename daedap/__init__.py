"""daedap (대답): from a file of Korean questions and answers to a chatbot that answers to the point."""

__version__ = "0.1.0"
