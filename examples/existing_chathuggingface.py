"""Guard a ChatHuggingFace that you have: its model, tokenizer and generation settings are taken over."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from transformers import pipeline

from semgrad_guard import LowConfidenceError, Raise, SemGradGuard, get_confidence
from semgrad_guard.demo import embedded_model, embedded_profile

model, tokenizer = embedded_model()
pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=16, do_sample=False)
chat = ChatHuggingFace(llm=HuggingFacePipeline(pipeline=pipe))  # what you have

prompt = ChatPromptTemplate.from_template("What is the capital of {place}?")
before = prompt | chat | StrOutputParser()  # content repeats the prompt, and nothing says how sure it is
print(repr(before.invoke({"place": "Zubrovia"})))

guard = SemGradGuard(chat, profile=embedded_profile(), routes=[Raise()])
message = (prompt | guard).invoke({"place": "France"})
print(message.content, f"{get_confidence(message):.2f}", message.usage_metadata)
try:
    (prompt | guard).invoke({"place": "Zubrovia"})
except LowConfidenceError as error:
    print(error)
