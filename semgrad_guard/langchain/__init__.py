"""The LangChain side: chat model, guard, retrieval. The only room that imports langchain."""
