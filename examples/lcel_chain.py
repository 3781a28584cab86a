"""A guarded LCEL chain: answers when the model is sure, says so when it is not."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from semgrad_guard import Abstain, SemGradGuard
from semgrad_guard.demo import embedded_model, embedded_profile

guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[Abstain("I am not sure.")])
chain = ChatPromptTemplate.from_template("What is the capital of {place}?") | guard | StrOutputParser()

for place in ("France", "Japan", "Zubrovia"):
    print(f"{place}: {chain.invoke({'place': place})}")
